"""The reference engine `crypten`: MPCFormer's approach on CrypTen's generic protocols, with the numerics made right."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mpcformer.channel import Channel
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.engines.base import DATA_OWNER, MODEL_OWNER, BatchInputs, BatchShape, Outcome, PublicModel
from mpcformer.engines.cost import Cost, dealer_bytes
from mpcformer.engines.crypten.bert_program import (
    OUTCOME,
    PARAMETERS,
    WORDS,
    declare,
    parameter_inputs,
    unit_vectors,
    word_inputs,
)
from mpcformer.engines.crypten.compat import FRAC_BITS, PartyState, active, agree_on_zero_key
from mpcformer.engines.crypten.constants import constants_of
from mpcformer.engines.crypten.parameters import parameter_values
from mpcformer.engines.crypten.play import open_results, share_inputs
from mpcformer.engines.crypten.program import Program, in_group
from mpcformer.engines.dry_run import PlanRecorder, SilentChannel, WithoutValues
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.engines.stopwatch import Stopwatch
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.ring.random import KEY_BYTES


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
        self._constants = constants_of(public)
        if rank == MODEL_OWNER and weights is None:
            raise ProtocolError("the model owner's engine needs the weights")
        self._values = weights
        self._state: PartyState | None = None
        self._parameters: dict[str, Any] = {}

    @staticmethod
    def encode(
        public: PublicModel, weights: Mapping[str, torch.Tensor], *, frees: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return the parameters of a state dict; they share its memory, so nothing can be freed."""
        return parameter_values(public.config, constants_of(public), dict(weights))

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
        zero_key = agree_on_zero_key(self._channel, self._rank)
        self._state = PartyState(
            rank=self._rank, channel=self._channel, store=store, zero_key=zero_key, watch=_refuse_opening
        )
        with active(self._state):
            self._parameters = share_inputs(parameter_inputs(self._config), in_group(PARAMETERS, self._values or {}))
        self._values = None

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """Run the forward pass on meta tensors and note what it asks for: one segment."""
        return [self.dry_run(shape, SilentChannel())]

    def dry_run(self, shape: BatchShape, channel: Channel) -> list[Request]:
        """Run the data owner's forward pass on meta tensors, and return its plan."""
        recorder = PlanRecorder(DATA_OWNER)
        state = PartyState(
            rank=DATA_OWNER, channel=channel, store=recorder, zero_key=bytes(KEY_BYTES), watch=_refuse_opening
        )
        with active(state), WithoutValues():
            mask = torch.empty((shape.batch_size, shape.seq_len), dtype=torch.int64, device="meta")
            program = self._program(BatchInputs(mask), Stopwatch(channel.counters))
            words = torch.empty(program.inputs[WORDS].shape, dtype=torch.int64, device="meta")
            shared = share_inputs(program.inputs, {WORDS: words}, device="meta")
            open_results(program, program.results(shared))
        return recorder.plan

    def batch(self, shape: BatchShape, store: CorrelationStore, channel: Channel) -> "CrypTenBatch":
        """Begin a batch of this shape."""
        if self._state is None:
            raise ProtocolError("a batch was begun before setup")
        return CrypTenBatch(self._state, store, self._run)

    def _program(self, inputs: BatchInputs, watch: Stopwatch) -> Program:
        return declare(self._config, self._constants, inputs.attention_mask, inputs.asked, watch=watch)

    def _run(self, inputs: BatchInputs, watch: Stopwatch) -> Outcome:
        program, values = self._program(inputs, watch), {}
        if self._rank == DATA_OWNER:
            if inputs.input_ids is None:
                raise ProtocolError("the data owner's batch has no token ids")
            values[WORDS] = unit_vectors(self._config, inputs.input_ids, inputs.token_type_ids)
        words = share_inputs(word_inputs(self._config, inputs.shape), values)
        told = open_results(program, program.results(self._parameters | words)).get(OUTCOME)
        if told is None:
            return Outcome()
        refused, logits = told[:, -1] != 0, told[:, :-1]
        unknown = (refused | ~inputs.asked)[:, None]
        if self._config.pooling == "each":
            logits = logits.view(*inputs.attention_mask.shape, -1)
            unknown = unknown[:, :, None] | (inputs.attention_mask[:, :, None] == 0)
        return Outcome(refused, logits.masked_fill(unknown, torch.nan))


class CrypTenBatch:
    """One owner's side of one batch. `Batch` describes the methods.

    Args:
        state: this owner in the session.
        store: the batch's correlations.
        run: runs the pass, from the inputs, and measures it.
    """

    def __init__(
        self, state: PartyState, store: CorrelationStore, run: Callable[[BatchInputs, Stopwatch], Outcome]
    ) -> None:
        self._state, self._store, self._run = state, store, run
        self._inputs: BatchInputs | None = None
        self._watch: Stopwatch | None = None

    def offline(self, segment: int) -> None:
        """Do nothing, because the generic protocols open everything online."""

    def start(self, inputs: BatchInputs, channel: Channel) -> None:
        """Take the inputs."""
        self._inputs = inputs
        self._state.use(channel, self._store)
        self._watch = Stopwatch(channel.counters)

    def online(self, segment: int) -> Outcome:
        """Run the private forward pass of the batch."""
        if self._inputs is None or self._watch is None:
            raise ProtocolError("a batch runs online once, after its start")
        inputs, self._inputs = self._inputs, None
        self._watch.start()
        with active(self._state):
            outcome = self._run(inputs, self._watch)
        self._watch.lap("check")
        return outcome

    def breakdown(self) -> dict[str, float]:
        """Return the online seconds of the batch by operation."""
        return dict(self._watch.seconds) if self._watch else {}

    def waited(self) -> dict[str, float]:
        """Return the part of `breakdown` that was waiting."""
        return dict(self._watch.waited) if self._watch else {}


def _refuse_opening(operation: str) -> None:
    raise ProtocolError(f"{operation} would open a value in the middle of the private computation")
