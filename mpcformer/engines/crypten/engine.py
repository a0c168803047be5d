"""The reference engine `crypten`: MPCFormer's approach on CrypTen's generic protocols, with the numerics made right."""

import hashlib
from collections.abc import Callable, Mapping

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.engines.base import DATA_OWNER, MODEL_OWNER, BatchInputs, BatchShape, Outcome, PublicModel
from mpcformer.engines.cost import Cost, dealer_bytes
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.bert import CrypTenBert, shared_parameters
from mpcformer.engines.crypten.compat import FRAC_BITS, PartyState, active
from mpcformer.engines.crypten.constants import NewtonScales, model_constants
from mpcformer.engines.crypten.parameters import parameter_shapes, parameter_values
from mpcformer.engines.dry_run import PlanRecorder, SilentChannel, WithoutValues
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.ring.random import KEY_BYTES, derive_key, fresh_key

# One row with |x y - 1| > 0.18 trips the check; the rounding of a million good rows together does not.
RESIDUAL_LIMIT = 2.0**-10


class CrypTenEngine:
    """One owner's side of the engine `crypten`. `Engine` describes the methods."""

    name = "crypten"

    def __init__(
        self,
        *,
        rank: int,
        public: PublicModel,
        channel: Channel | None,
        weights: dict[str, torch.Tensor] | None,
        session_id: bytes = b"",
    ) -> None:
        if public.embeddings != "private_table":
            raise UserInputError(
                "engine crypten has private tables only", f"leave --embeddings out, or use {DEFAULT_ENGINE}"
            )
        self._rank = rank
        self._config = public.config
        self._channel = channel
        self._constants = _constants(public)
        if rank == MODEL_OWNER and weights is None:
            raise ProtocolError("the model owner's engine needs the weights")
        self._values = weights
        self._state: PartyState | None = None
        self._bert: CrypTenBert | None = None

    @staticmethod
    def encode(public: PublicModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parameters of a state dict."""
        return parameter_values(public.config, _constants(public), dict(weights))

    def fingerprint(self) -> str:
        """Return a hex digest of the ring and of the derived constants."""
        ring = f"Z_2^64, {FRAC_BITS} fraction bits"
        return hashlib.sha256(f"{ring}\0{self._constants.digest()}".encode()).hexdigest()

    def cost(self, shape: BatchShape) -> Cost:
        """Count the forward pass on meta tensors. All openings are two-way, so one owner's messages are the rounds."""
        channel = SilentChannel()
        requests = self.dry_run(shape, channel)
        online = channel.counters
        return Cost(
            rounds=online.rounds,
            bytes_to_data_owner=online.bytes_received,
            bytes_to_model_owner=online.bytes_sent,
            offline_bytes_to_model_owner=0,
            offline_bytes_to_data_owner=0,
            dealer_bytes=dealer_bytes(requests),
            setup_bytes=KEY_BYTES,
        )

    def setup(self, store: CorrelationStore) -> None:
        """Agree on the zero-sharing key (half from each owner, unknown to the dealer) and share the parameters."""
        if self._channel is None:
            raise ProtocolError("an engine without a channel can only plan")
        mine = fresh_key()
        spec = Spec(torch.uint8, (len(mine),))
        self._channel.send([torch.frombuffer(bytearray(mine), dtype=torch.uint8)])
        theirs = bytes(self._channel.receive([spec])[0].tolist())
        halves = [mine, theirs] if self._rank == MODEL_OWNER else [theirs, mine]
        zero_key = derive_key(halves[0], "zero sharing", halves[1])
        self._state = PartyState(rank=self._rank, channel=self._channel, store=store, zero_key=zero_key)
        with active(self._state):
            self._bert = self._build(self._values, self._channel)
        self._values = None

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """Run the forward pass on meta tensors and note what it asks for: one segment."""
        return [self.dry_run(shape, SilentChannel())]

    def dry_run(self, shape: BatchShape, channel: Channel) -> list[Request]:
        """Run the data owner's forward pass on meta tensors, and return its plan."""
        recorder = PlanRecorder(DATA_OWNER)
        state = PartyState(rank=DATA_OWNER, channel=channel, store=recorder, zero_key=bytes(16))
        with active(state), WithoutValues():
            mask = torch.empty((shape.batch_size, shape.seq_len), dtype=torch.int64, device="meta")
            one_hot = torch.empty(self._one_hot_size(shape), dtype=torch.int64, device="meta")
            self._forward(self._build(None, channel, device="meta"), mask, one_hot, BatchInputs(mask).asked)
        return recorder.plan

    def batch(self, shape: BatchShape, store: CorrelationStore, channel: Channel) -> "CrypTenBatch":
        """Begin a batch of this shape."""
        if self._state is None or self._bert is None:
            raise ProtocolError("a batch was begun before setup")
        return CrypTenBatch(self._state, self._bert, store, self._run)

    def _run(self, inputs: BatchInputs) -> Outcome:
        assert self._bert is not None
        return self._forward(self._bert, inputs.attention_mask, self._one_hot(inputs), inputs.asked)

    def _build(self, values: dict[str, torch.Tensor] | None, channel: Channel, device: str = "cpu") -> CrypTenBert:
        parameters = shared_parameters(parameter_shapes(self._config), values, device)
        return CrypTenBert(parameters, self._config, self._constants, channel.counters)

    def _one_hot_size(self, shape: BatchShape) -> tuple[int, int]:
        return shape.batch_size * shape.seq_len, self._config.vocab_size + self._config.type_vocab_size

    def _one_hot(self, inputs: BatchInputs) -> torch.Tensor | None:
        if self._rank == MODEL_OWNER:
            return None
        if inputs.input_ids is None:
            raise ProtocolError("the data owner's batch has no token ids")
        ids = inputs.input_ids.reshape(-1, 1)
        types = torch.zeros_like(ids) if inputs.token_type_ids is None else inputs.token_type_ids.reshape(-1, 1)
        one_hot = torch.zeros(self._one_hot_size(inputs.shape), dtype=torch.int64)
        one_hot.scatter_(1, ids, 1)
        return one_hot.scatter_(1, types + self._config.vocab_size, 1)

    def _forward(
        self, bert: CrypTenBert, mask: torch.Tensor, one_hot: torch.Tensor | None, asked: torch.Tensor
    ) -> Outcome:
        shape = BatchShape(*mask.shape)
        shared = ops.Shared(
            tensor=one_hot, size=self._one_hot_size(shape), precision=0, src=DATA_OWNER, device=mask.device
        )
        logits, residual = bert.forward(shared, mask)
        # Both sides: what diverged has wrapped around the ring, and is as likely negative as positive.
        sides = ops.wrap(torch.stack([-residual.share, residual.share]))
        outside = ops.less_than_zero(ops.add_public(sides, RESIDUAL_LIMIT)).sum(0)  # (B,)
        # Neither owner learns the bit of a row that only fills the batch.
        outside = outside * asked.long()
        # The bit is multiplied on shares and opened to the data owner alone: the model owner never learns it.
        told = ops.only_first(asked.long()) - outside
        each = logits.share.dim() == 3
        numbers = ops.wrap(logits.share.flatten(1))
        both = torch.cat([ops.select(told[:, None], numbers).share, outside[:, None]], dim=1)
        if each:
            # Nothing of padding is told.
            real = mask.repeat_interleave(logits.share.size(2), dim=1)
            both = both * torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        opened = ops.Shared.from_shares(both, precision=0).get_plain_text(dst=DATA_OWNER)
        if opened is None:
            return Outcome()
        refused = opened[:, -1] != 0
        found = opened[:, :-1].double().div(1 << FRAC_BITS).float().view(logits.share.shape)
        withheld = (refused | ~asked).view(-1, *[1] * (found.dim() - 1))
        return Outcome(refused, found.masked_fill(withheld | (mask[:, :, None] == 0) if each else withheld, torch.nan))


class CrypTenBatch:
    """One owner's side of one batch. `Batch` describes the methods.

    Args:
        state: this owner in the session.
        bert: the pass.
        store: the batch's correlations.
        run: runs the pass, from the inputs.
    """

    def __init__(
        self,
        state: PartyState,
        bert: CrypTenBert,
        store: CorrelationStore,
        run: Callable[[BatchInputs], Outcome],
    ) -> None:
        self._state, self._bert, self._store, self._run = state, bert, store, run
        self._inputs: BatchInputs | None = None
        self._seconds: dict[str, float] = {}
        self._waited: dict[str, float] = {}

    def offline(self, segment: int) -> None:
        """Do nothing, because the generic protocols open everything online."""

    def start(self, inputs: BatchInputs, channel: Channel) -> None:
        """Take the inputs."""
        self._inputs = inputs
        self._state.use(channel, self._store)
        self._bert.counters = channel.counters

    def online(self, segment: int) -> Outcome:
        """Run the private forward pass of the batch."""
        if self._inputs is None:
            raise ProtocolError("a batch runs online once, after its start")
        inputs, self._inputs = self._inputs, None
        with active(self._state):
            outcome = self._run(inputs)
        self._bert.watch.lap("check")
        self._seconds, self._waited = dict(self._bert.watch.seconds), dict(self._bert.watch.waited)
        return outcome

    def breakdown(self) -> dict[str, float]:
        """Return the online seconds of the batch by operation."""
        return self._seconds

    def waited(self) -> dict[str, float]:
        """Return the part of `breakdown` that was waiting."""
        return self._waited


def _constants(public: PublicModel) -> NewtonScales:
    return model_constants(
        gelu=public.config.gelu,
        softmax=public.config.softmax,
        n_layers=public.config.num_hidden_layers,
        bounds=public.ranges.bounds,
        constant_norms=public.config.constant_norms,
        head_activation=public.config.head_activation,
    )
