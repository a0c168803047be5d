"""A program's plan: which correlations it will ask for, and what it costs, from its declaration alone."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import torch

from mpcformer.channel import Spec
from mpcformer.correlations import Dealt, Request, correction_specs, correlation_plan_digest, is_shared, sketch
from mpcformer.engines.crypten.compat import PartyState
from mpcformer.engines.dry_run import PlanRecorder, SilentChannel
from mpcformer.errors import UserInputError
from mpcformer.programs.load import LoadedProgram
from mpcformer.programs.run import run_program
from mpcformer.ring.random import KEY_BYTES

SHAPES, ZEROS = "shapes", "zeros"
# The elements of a program's inputs up to which zeros are planned with at once.
SMALL = 1 << 16
# A program that is not done by then, on zeros, waits for ever, in seconds.
LIMIT_S = 600.0


@dataclass(frozen=True)
class Plan:
    """What a program asks for and costs.

    Args:
        requests: its correlations, in order.
        how: "shapes" if shapes sufficed, "zeros" if it was run on zeros.
        rounds: messages on the critical path, as `Counters.rounds`.
        owner_rounds: the same, as each owner for whom it was planned counts them.
        bytes_sent: of all tensors, by each of these owners.
        n_messages: the messages that each of them sends.
        seconds: of computing, at one party, as far as the dry run computed.
        results: the shape of each result.
    """

    requests: list[Request]
    how: str
    rounds: int
    owner_rounds: tuple[int, ...]
    bytes_sent: tuple[int, ...]
    n_messages: int
    seconds: float
    results: dict[str, tuple[int, ...]]

    @property
    def dealer_bytes(self) -> int:
        """The bytes of all corrections."""
        return sum(spec.n_bytes for request in self.requests for spec in correction_specs(request))

    @property
    def passed_on_bytes(self) -> int:
        """The bytes of those corrections that the model owner passes on to the data owner, ahead."""
        shared = [request for request in self.requests if is_shared(request)]
        return sum(spec.n_bytes for request in shared for spec in correction_specs(request))

    @property
    def digest(self) -> bytes:
        """32 bytes that differ whenever two plans do."""
        return correlation_plan_digest(self.requests)


class _ZeroStore:
    """A correlation store whose tensors are zero, and which notes what is asked for."""

    def __init__(self, rank: int) -> None:
        self.plan: list[Request] = []
        self._rank = rank

    def take(self, request: Request) -> Dealt:
        self.plan.append(request)
        tensors = sketch(request, self._rank).shares
        return Dealt(request, [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors])


class _ZeroChannel(SilentChannel):
    """A channel on which zeros arrive."""

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        super().receive(specs)
        return [torch.zeros(spec.shape, dtype=spec.dtype) for spec in specs]


def dry_run(
    loaded: LoadedProgram, *, ranks: Sequence[int] = (0, 1), on_shapes: bool | None = None, limit_s: float = LIMIT_S
) -> Plan:
    """Plan a program from its declaration: on shapes alone, or on zeros where the program looks at values.

    Args:
        loaded: the program.
        ranks: the owners for whom it is planned; both plans must be the same.
        on_shapes: whether to try shapes alone first. None: if the inputs are large, because torch takes seconds to load
            what computes on shapes, and small zeros take none.
        limit_s: how long it may take; it is kept in the main thread alone.

    Raises:
        UserInputError: the program does what it may not, or does not end.
    """
    if on_shapes is None:
        on_shapes = sum(math.prod(found.shape) for found in loaded.program.inputs.values()) > SMALL
    plans: list[Plan] = []
    with _limit(loaded, limit_s):
        if on_shapes:
            try:
                plans = [_rehearse(loaded, rank, SHAPES) for rank in ranks]
            except Exception as error:
                if _is_final(error):
                    raise
        plans = plans or [_rehearse(loaded, rank, ZEROS) for rank in ranks]
    if any(plan.requests != plans[0].requests for plan in plans):
        raise UserInputError(
            "program: the two owners would ask for different correlations",
            "let both owners run the same operations, whatever crypten.communicator says of their rank",
        )
    sent = tuple(plan.bytes_sent[0] for plan in plans)
    rounds = tuple(plan.rounds for plan in plans)
    return replace(plans[0], rounds=max(rounds), owner_rounds=rounds, bytes_sent=sent)


def _rehearse(loaded: LoadedProgram, rank: int, how: str) -> Plan:
    device = "meta" if how == SHAPES else "cpu"
    store: PlanRecorder | _ZeroStore = PlanRecorder(rank) if how == SHAPES else _ZeroStore(rank)
    channel = SilentChannel() if how == SHAPES else _ZeroChannel()
    state = PartyState(rank=rank, channel=channel, store=store, zero_key=bytes(KEY_BYTES))
    values = {name: torch.zeros(declared.shape, device=device) for name, declared in loaded.program.inputs.items()}
    start, sizes = time.perf_counter(), dict[str, tuple[int, ...]]()
    run_program(loaded, state, values, device=device, rehearsal=True, sizes=sizes)
    counted, seconds = channel.counters, time.perf_counter() - start
    return Plan(
        store.plan, how, counted.rounds, (counted.rounds,), (counted.bytes_sent,), counted.messages_sent, seconds, sizes
    )


def _is_final(error: Exception) -> bool:
    """Return whether an error says something about the program, and not that shapes do not suffice."""
    return isinstance(error, UserInputError) and error.__cause__ is None


@contextmanager
def _limit(loaded: LoadedProgram, limit_s: float) -> Iterator[None]:
    """Interrupt the main thread after so many seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        line = loaded.path.name
        while frame is not None:
            if frame.f_code.co_filename == str(loaded.path) or frame.f_code.co_filename == str(loaded.path.resolve()):
                line = f"{loaded.path.name}:{frame.f_lineno}"
                break
            frame = frame.f_back
        raise _LateError(
            f"program: it is still at {line} after {limit_s:.0f} s of its dry run",
            "let it end, or use smaller shapes",
        )

    handler, start = signal.signal(signal.SIGALRM, interrupt), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        # Whoever had set the timer gets it back.
        still = max(0.01, left - (time.monotonic() - start)) if left else 0.0
        signal.setitimer(signal.ITIMER_REAL, still, interval)


class _LateError(UserInputError):
    """A dry run that does not end."""
