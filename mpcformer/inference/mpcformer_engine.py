"""The engine `mpcformer`: protocols made for this model. The weights are masked once a session, not once an input."""

from collections.abc import Mapping
from typing import Any

import torch

from mpcformer.channel import Channel, Counters
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.inference import fixed_point as fp
from mpcformer.inference.dry_run import PlanRecorder, SilentChannel, rehearse
from mpcformer.inference.engine import DATA_OWNER, MODEL_OWNER, BatchInputs, BatchShape, PublicModel
from mpcformer.inference.owned_weights import OwnedWeights, owned_weights, weight_bits, weight_shapes
from mpcformer.inference.private_bert import PrivateBert, masked_specs
from mpcformer.protocols.linear import masked_weight
from mpcformer.protocols.party import Party
from mpcformer.ring.packing import pack, unpack


class MPCFormerEngine:
    """One owner's side. See `Engine` for the methods."""

    name = "mpcformer"

    def __init__(
        self, *, party: int, public: PublicModel, channel: Channel | None, weights: Mapping[str, torch.Tensor] | None
    ) -> None:
        config = public.config
        if (config.gelu, config.softmax) != ("quad", "2quad"):
            raise UserInputError(
                f"engine mpcformer runs quad + 2quad, this student has {config.gelu} + {config.softmax}",
                "use --engine crypten, or distil with --gelu quad --softmax 2quad",
            )
        self._party, self._config, self._channel = party, config, channel
        self._constants = engine_constants(public)
        self._owned: OwnedWeights | None = None
        if party == MODEL_OWNER:
            if weights is None:
                raise ProtocolError("the model owner's engine needs the weights")
            self._owned = owned_weights(config, self._constants, dict(weights))
        self._masked: dict[str, torch.Tensor] | None = None
        self._plans: dict[BatchShape, tuple[list[list[Request]], dict[str, int]]] = {}
        self._bert: PrivateBert | None = None
        self._inputs: BatchInputs | None = None
        self._first_operation = 0

    def fingerprint(self) -> str:
        """Hex digest of the derived constants."""
        return self._constants.digest()

    def setup(self, store: CorrelationStore) -> None:
        """The model owner sends every weight once, masked."""
        if self._channel is None:
            raise ProtocolError("an engine without a channel can only plan")
        shapes = weight_shapes(self._config)
        if self._owned is not None:
            key = store.weight_mask_key()
            for name, weight in self._owned.weights.items():
                bits = weight_bits(name)
                self._channel.send([pack(masked_weight(weight, key, name, bits), bits)])
            return
        self._masked = {}
        for name, spec in masked_specs(self._config):
            bits = weight_bits(name)
            masked = unpack(self._channel.receive([spec])[0], shapes[name], bits)
            self._masked[name] = masked.to(torch.int32) if bits == 32 else masked

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """Run the pass on meta tensors and note what it asks for."""
        return self._planned(shape)[0]

    def _planned(self, shape: BatchShape) -> tuple[list[list[Request]], dict[str, int]]:
        if shape not in self._plans:
            self._plans = {shape: dry_run(self._config, self._constants, shape)}
        return self._plans[shape]

    def start(self, inputs: BatchInputs, store: CorrelationStore) -> None:
        """Begin a batch."""
        if self._channel is None:
            raise ProtocolError("an engine without a channel can only plan")
        party = Party(self._party, self._channel, store)
        self._bert = PrivateBert(party, self._config, self._constants, inputs.attention_mask, self._owned, self._masked)
        self._inputs, self._first_operation = inputs, store.next_operation

    def offline(self, segment: int) -> None:
        """The data owner's halves of openings that do not depend on the input."""
        if self._bert is None or self._inputs is None:
            raise ProtocolError("a batch runs after setup and start")
        starts = self._planned(self._inputs.shape)[1]
        self._bert.offline(segment, {name: at + self._first_operation for name, at in starts.items()})

    def online(self, segment: int) -> torch.Tensor | None:
        """A segment of the pass."""
        if self._bert is None or self._inputs is None:
            raise ProtocolError("a batch runs after setup and start")
        ones = self._ones(self._inputs) if segment == 0 and self._party == DATA_OWNER else None
        return self._bert.online(segment, ones)

    def breakdown(self) -> dict[str, float]:
        """Online seconds of the batch by operation."""
        return {} if self._bert is None else dict(self._bert.watch.seconds)

    def _ones(self, inputs: BatchInputs) -> torch.Tensor:
        if inputs.input_ids is None:
            raise ProtocolError("the data owner's batch has no token ids")
        ids = inputs.input_ids
        types = torch.zeros_like(ids) if inputs.token_type_ids is None else inputs.token_type_ids
        return torch.stack([ids.reshape(-1), types.reshape(-1) + self._config.vocab_size], dim=1)


def engine_constants(public: PublicModel) -> fp.Constants:
    """The constants of a model.

    Raises:
        RangeError: ranges that the engine cannot carry.
    """
    config = public.config
    return fp.constants(
        hidden_size=config.hidden_size,
        epsilon=config.layer_norm_eps,
        n_layers=config.num_hidden_layers,
        bounds=public.ranges.bounds,
    )


def dry_run(config: Any, constants: fp.Constants, shape: BatchShape) -> tuple[list[list[Request]], dict[str, int]]:
    """The plan by segments, and the operation at which each map starts."""
    recorder = PlanRecorder(MODEL_OWNER)
    bert = _sketched(config, constants, shape, Party(MODEL_OWNER, SilentChannel(), recorder))
    segments, at = [], 0
    for segment in range(bert.n_segments):
        bert.online(segment, None)
        segments.append(recorder.plan[at:])
        at = len(recorder.plan)
    names = [name for segment in range(bert.n_segments) for name in bert.maps(segment)] + ["classifier"]
    positions = [i for i, request in enumerate(recorder.plan) if request.kind == "linear"]
    return segments, dict(zip(names, positions, strict=True))


def rehearsal(config: Any, constants: fp.Constants, shape: BatchShape, phase: str) -> list[Counters]:
    """What each owner's channel counts in one phase, offline or online, of a batch."""

    def owner(rank: int, channel: Channel) -> None:
        bert = _sketched(config, constants, shape, Party(rank, channel, PlanRecorder(rank)))
        for segment in range(bert.n_segments):
            if phase == "offline":
                bert.offline(segment, dict.fromkeys(bert.maps(segment), 0))
            else:
                bert.online(segment, None)

    return rehearse(owner)


def _sketched(config: Any, constants: fp.Constants, shape: BatchShape, party: Party) -> PrivateBert:
    def meta(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=torch.int64, device="meta")

    masked = {name: meta(*sizes) for name, sizes in weight_shapes(config).items()}
    mask = meta(shape.batch_size, shape.seq_len)
    return PrivateBert(party, config, constants, mask, None, masked if party.rank == DATA_OWNER else None)
