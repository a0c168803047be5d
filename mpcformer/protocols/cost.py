"""The cost of protocols as code: each protocol has a function `cost` that returns a `ProtocolCost` for given shapes.

A cost is the list of the protocol's messages, not only their number, because rounds do not add up. Protocols that run
side by side share messages, and an owner that need not wait for an answer can go on. `a + b` is the cost of b after a,
and `a | b` is the cost of both side by side, where the first messages of both are one message, then the second ones,
and so on. The rounds of the sum follow from its messages.

`tests/protocols/test_costs.py` compares every cost with what channels counted, with the bytes of the corrections, and
with the cost line of the docstring. `tests/engines/test_cost.py` adds up the costs of a whole pass and compares the sum
with the engine's estimate.
"""

from dataclasses import dataclass
from itertools import zip_longest

from mpcformer.correlations import Request, correction_specs, is_shared
from mpcformer.protocols.party import MODEL_OWNER, HalfShape, half_bytes


@dataclass(frozen=True)
class Step:
    """One step of a protocol, in which each owner sends at most one message and neither waits for the other's.

    Args:
        to_model_owner, to_data_owner: the bytes of the message; None if there is none.
    """

    to_model_owner: int | None = None
    to_data_owner: int | None = None

    def __or__(self, other: "Step") -> "Step":
        return Step(
            _joined(self.to_model_owner, other.to_model_owner), _joined(self.to_data_owner, other.to_data_owner)
        )


@dataclass(frozen=True)
class ProtocolCost:
    """The cost of a protocol. Bytes are those of the tensors, without frames and TLS.

    Args:
        steps: the messages of the online phase.
        dealer_bytes: what the dealer sends to the model owner.
        offline_bytes_to_model_owner: what the data owner sends before its input is known.
        offline_bytes_to_data_owner: corrections that the model owner passes on.
        setup_bytes: what the model owner sends once a session.
    """

    steps: tuple[Step, ...] = ()
    dealer_bytes: int = 0
    offline_bytes_to_model_owner: int = 0
    offline_bytes_to_data_owner: int = 0
    setup_bytes: int = 0

    @property
    def rounds(self) -> int:
        """The number of messages on the critical path, as `mpcformer.channel.Counters` counts them."""
        model_owner = data_owner = 0
        for step in self.steps:
            before = model_owner, data_owner
            if step.to_model_owner is not None:
                model_owner = max(before[0], before[1] + 1)
            if step.to_data_owner is not None:
                data_owner = max(before[1], before[0] + 1)
        return max(model_owner, data_owner)

    @property
    def bytes_to_model_owner(self) -> int:
        """The bytes that the data owner sends online."""
        return sum(step.to_model_owner or 0 for step in self.steps)

    @property
    def bytes_to_data_owner(self) -> int:
        """The bytes that the model owner sends online."""
        return sum(step.to_data_owner or 0 for step in self.steps)

    def __add__(self, after: "ProtocolCost") -> "ProtocolCost":
        return self._with((*self.steps, *after.steps), after)

    def __or__(self, beside: "ProtocolCost") -> "ProtocolCost":
        steps = zip_longest(self.steps, beside.steps, fillvalue=Step())
        return self._with(tuple(one | other for one, other in steps), beside)

    def _with(self, steps: tuple[Step, ...], other: "ProtocolCost") -> "ProtocolCost":
        return ProtocolCost(
            steps,
            self.dealer_bytes + other.dealer_bytes,
            self.offline_bytes_to_model_owner + other.offline_bytes_to_model_owner,
            self.offline_bytes_to_data_owner + other.offline_bytes_to_data_owner,
            self.setup_bytes + other.setup_bytes,
        )


def _joined(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


def message(to_rank: int, *halves: HalfShape) -> ProtocolCost:
    """Return the cost of one message with halves of these shapes: 1 round, one way."""
    n_bytes = sum(map(half_bytes, halves))
    return ProtocolCost((Step(to_model_owner=n_bytes) if to_rank == MODEL_OWNER else Step(to_data_owner=n_bytes),))


def opening(*halves: HalfShape, ahead: bool = False) -> ProtocolCost:
    """Return the cost of an opening.

    Args:
        halves: the shape of each half.
        ahead: whether the data owner's halves do not depend on its input, so that it sent them offline.
    """
    n_bytes = sum(map(half_bytes, halves))
    if ahead:
        return ProtocolCost((Step(to_data_owner=n_bytes),), offline_bytes_to_model_owner=n_bytes)
    return ProtocolCost((Step(n_bytes, n_bytes),))


def dealt(*requests: Request) -> ProtocolCost:
    """Return the cost of correlations: the bytes of the dealer's corrections, and of those that are passed on."""
    n_bytes = [sum(spec.n_bytes for spec in correction_specs(request)) for request in requests]
    passed_on = sum(n for n, request in zip(n_bytes, requests, strict=True) if is_shared(request))
    return ProtocolCost(dealer_bytes=sum(n_bytes), offline_bytes_to_data_owner=passed_on)
