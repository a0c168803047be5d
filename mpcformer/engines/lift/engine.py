"""The engine `lift`, the default: the weights are masked once a session, and openings are lifted from small rings.

The name comes from the lifted openings (`mpcformer.protocols.lifted`) that the pass is built of.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.correlations.linear import SHORT, TAGS, LinearSpec, weight_mask
from mpcformer.correlations.row_lookup import LookupSpec, salt_of
from mpcformer.engines.base import DATA_OWNER, MODEL_OWNER, BatchInputs, BatchShape, Outcome, PublicModel
from mpcformer.engines.cost import Cost
from mpcformer.engines.dry_run import PlanRecorder, SilentChannel, WithoutValues
from mpcformer.engines.lift.ahead import Ahead
from mpcformer.engines.lift.bert import PrivateBert
from mpcformer.engines.lift.cost import BatchCost
from mpcformer.engines.lift.scales.model import LiftScales, lift_scales
from mpcformer.engines.lift.weights import (
    TABLE_BITS,
    OwnedWeights,
    masked_specs,
    owned_weights,
    weight_shapes,
)
from mpcformer.errors import ProtocolError
from mpcformer.protocols.linear import masked_weight
from mpcformer.protocols.party import HalfShape, Party
from mpcformer.ring.filed import Masked, kept_in_file
from mpcformer.ring.packing import WORD, PackedMatrix, pack, packed_bytes, unpack, unpack_int32

# How many shapes of batches keep their plan.
MAX_PLANS = 32
# The most bytes of masked weights that wait to be sent in the set-up.
QUEUED_BYTES = 1 << 25


class LiftEngine:
    """One owner's side of the engine `lift`. `Engine` describes the methods."""

    name = "lift"

    def __init__(
        self,
        *,
        rank: int,
        public: PublicModel,
        channel: Channel | None,
        weights: OwnedWeights | None,
        session_id: bytes = b"",
    ) -> None:
        config = public.config
        self._rank, self._public, self._config, self._channel = rank, public, config, channel
        self._constants = engine_constants(public)
        if rank == MODEL_OWNER and weights is None:
            raise ProtocolError("the model owner's engine needs the weights")
        self._owned = weights
        self._masked: dict[str, Masked] | None = None
        self._salt = salt_of(session_id)
        self._table_mask: torch.Tensor | None = None
        # Public tables at the data owner: words and token types (V + T, H), positions (P, H); centred, real.
        self._tables: list[torch.Tensor] = []
        self._plans: dict[BatchShape, Planned] = {}
        self._planning = threading.Lock()

    @staticmethod
    def encode(public: PublicModel, weights: Mapping[str, torch.Tensor], *, frees: bool = False) -> OwnedWeights:
        """Return the integers of a state dict."""
        return owned_weights(public.config, engine_constants(public), weights, frees=frees)

    def fingerprint(self) -> str:
        """Return a hex digest of the derived constants."""
        return self._constants.digest()

    def cost(self, shape: BatchShape) -> Cost:
        """Add up what the protocols of a pass cost."""
        total = BatchCost(self._public, self._constants, shape).total()
        return Cost(**{field.name: getattr(total, field.name) for field in fields(Cost)})

    def setup(self, store: CorrelationStore) -> None:
        """Send every weight once, masked, from the model owner to the data owner."""
        if self._channel is None:
            raise ProtocolError("an engine without a channel can only plan")
        shapes = weight_shapes(self._config, self._public.embeddings)
        if self._owned is not None:
            key = store.weight_mask_key()
            for name in shapes:
                bits = self._constants.weight_bits(name)
                masked = masked_weight(self._owned.weights[name], key, name, bits)
                self._channel.send([pack(masked, bits)])
                self._channel.settle(QUEUED_BYTES)
                if name == "embeddings":
                    self._table_mask = self._owned.weights[name] - masked
            if self._public.embeddings == "public_table":
                tables = self._owned.weights["embeddings"], self._owned.biases["embeddings"]
                self._channel.send([pack(table, TABLE_BITS) for table in tables])
            return
        self._masked = {}
        for name, spec in masked_specs(self._config, self._constants, self._public.embeddings):
            bits = self._constants.weight_bits(name)
            packed = self._channel.receive([spec])[0]
            self._masked[name] = _kept(name, packed, shapes[name], bits)
        if self._public.embeddings == "public_table":
            self._receive_tables(self._channel)

    def _receive_tables(self, channel: Channel) -> None:
        width = self._config.embedding_size
        rows = self._config.vocab_size + self._config.type_vocab_size, self._config.max_position_embeddings
        packed = channel.receive([Spec(torch.uint8, (packed_bytes(n * width, TABLE_BITS),)) for n in rows])
        for n, table in zip(rows, packed, strict=True):
            integers = unpack_int32(table, (n, width))
            self._tables.append(integers.double() * 2.0**-self._constants.embedding_norm.scale)

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """Run the pass on meta tensors and record the correlations that it asks for."""
        return self._planned(shape).segments

    def _planned(self, shape: BatchShape) -> "Planned":
        # One thread may deal while another one asks. A thread that wants a plan waits for another one that makes it.
        found = self._plans.get(shape)
        if found is not None:
            return found
        with self._planning:
            found = self._plans.get(shape)
            if found is None:
                found = dry_run(self._public, shape, self._salt)
                while len(self._plans) >= MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[shape] = found
        return found

    def batch(self, shape: BatchShape, store: CorrelationStore, channel: Channel) -> "LiftBatch":
        """Begin a batch of this shape."""
        planned = self._planned(shape)
        starts = {name: at + store.next_operation for name, at in planned.starts.items()}
        is_owner, n_keys = self._owned is not None, self._config.hidden_size
        tag_keys = weight_mask(store.batch_key(), TAGS, (n_keys,), WORD) if is_owner else None
        ahead = Ahead(
            Party(self._rank, channel, store),
            self._config,
            self._constants,
            (shape.batch_size, shape.seq_len),
            self._owned,
            self._masked,
            embeddings=self._public.embeddings,
            salt=self._salt,
            table_mask=self._table_mask,
            half_shapes=planned.half_shapes,
        )

        def begin(inputs: BatchInputs, channel: Channel) -> PrivateBert:
            return PrivateBert(
                Party(self._rank, channel, store),
                self._config,
                self._constants,
                inputs.attention_mask,
                self._owned,
                self._masked,
                ahead,
                self._public.embeddings,
                asked=inputs.asked,
                tag_keys=tag_keys,
            )

        return LiftBatch(self._rank, ahead, starts, begin, self._first)

    def _first(self, inputs: BatchInputs) -> torch.Tensor:
        """Return the data owner's input of the first segment, which `PrivateBert.online` describes."""
        if inputs.input_ids is None:
            raise ProtocolError("the data owner's batch has no token ids")
        ids = inputs.input_ids
        types = torch.zeros_like(ids) if inputs.token_type_ids is None else inputs.token_type_ids
        columns = torch.stack([ids.reshape(-1), types.reshape(-1) + self._config.vocab_size], dim=1)
        if self._public.embeddings == "private_table":
            return columns
        words, positions = self._tables
        rows = words[columns].sum(1) + positions[: ids.size(1)].repeat(ids.size(0), 1)
        norm = self._constants.embedding_norm
        if norm.function is not None:
            epsilon = self._config.layer_norm_eps / norm.unit**2
            rows = rows * (rows.square().mean(-1, keepdim=True) + epsilon).rsqrt()
        first: torch.Tensor = (rows * 2.0**self._constants.rings.input_scale).round().long()
        return first


class LiftBatch:
    """One owner's side of one batch. `Batch` describes the methods.

    Args:
        rank: this owner's rank.
        ahead: the part that does not depend on the text.
        starts: the index of each map's first operation in the store.
        begin: makes the pass, from the inputs and the channel for the online part.
        first: makes the data owner's input of the first segment, from the inputs.
    """

    def __init__(
        self,
        rank: int,
        ahead: Ahead,
        starts: dict[str, int],
        begin: Callable[[BatchInputs, Channel], PrivateBert],
        first: Callable[[BatchInputs], torch.Tensor],
    ) -> None:
        self._rank, self._ahead, self._starts, self._begin, self._first = rank, ahead, starts, begin, first
        self._bert: PrivateBert | None = None
        self._inputs: BatchInputs | None = None

    def offline(self, segment: int) -> None:
        """Exchange the data owner's halves of those openings that do not depend on the input."""
        self._ahead.offline(segment, self._starts)

    def start(self, inputs: BatchInputs, channel: Channel) -> None:
        """Take the inputs."""
        self._inputs = inputs
        self._bert = self._begin(inputs, channel)

    def online(self, segment: int) -> Outcome | None:
        """Run a segment of the pass on shares."""
        if self._bert is None or self._inputs is None:
            raise ProtocolError("a batch runs online after its start")
        first = self._first(self._inputs) if segment == 0 and self._rank == DATA_OWNER else None
        return self._bert.online(segment, first)

    def breakdown(self) -> dict[str, float]:
        """Return the online seconds of the batch by operation."""
        return {} if self._bert is None else dict(self._bert.watch.seconds)

    def waited(self) -> dict[str, float]:
        """Return the part of `breakdown` that was waiting."""
        return {} if self._bert is None else dict(self._bert.watch.waited)


def _kept(name: str, packed: torch.Tensor, shape: tuple[int, ...], bits: int) -> Masked:
    """Return a masked weight as the data owner keeps it: as int32, packed, or as int64 if it is small."""
    if bits == SHORT:
        weight = unpack_int32(packed, shape)
        return kept_in_file(weight) if name == "embeddings" else weight
    if len(shape) == 2 and bits < WORD and name not in ("embeddings", "classifier"):
        return PackedMatrix(packed, shape, bits)
    return unpack(packed, shape, bits)


def engine_constants(public: PublicModel) -> LiftScales:
    """Derive the public constants of a model.

    Raises:
        RangeError: ranges that the engine cannot carry.
    """
    return lift_scales(public.config, public.ranges.bounds)


@dataclass(frozen=True)
class Planned:
    """What a dry run tells of batches of a shape.

    Args:
        segments: the plan.
        starts: by map, the index of the operation at which it starts.
        half_shapes: by map, shape and bits of each half of its opening.
    """

    segments: list[list[Request]]
    starts: dict[str, int]
    half_shapes: dict[str, list[HalfShape]]


def dry_run(public: PublicModel, shape: BatchShape, salt: int = 0) -> Planned:
    """Plan a batch by a pass without values."""
    recorder = PlanRecorder(MODEL_OWNER)
    party = Party(MODEL_OWNER, SilentChannel(), recorder)
    config, constants, embeddings = public.config, engine_constants(public), public.embeddings
    size = shape.batch_size, shape.seq_len
    segments, at = [], 0
    with WithoutValues():
        ahead = Ahead(party, config, constants, size, None, None, embeddings=embeddings, salt=salt, is_plan=True)
        bert = PrivateBert(party, config, constants, torch.empty(size).long(), None, None, ahead, embeddings)
        for segment in range(bert.maps.n_segments):
            bert.online(segment, None)
            segments.append(recorder.plan[at:])
            at = len(recorder.plan)
    starts = {}
    for i, request in enumerate(recorder.plan):
        if request.kind == "linear":
            starts[LinearSpec.of(request).names[0]] = i
        elif request.kind == "row_lookup":
            starts[LookupSpec.of(request).table] = i
    return Planned(segments, starts, bert.maps.half_shapes)
