"""One owner's correlations of one session, which are used in order, each exactly once."""

import math
from collections.abc import Sequence

import torch

from mpcformer.channel import Spec
from mpcformer.correlations.kinds import (
    Dealt,
    correction_specs,
    drawn,
    expand,
    is_shared,
    n_elements,
    stays_packed,
    unpacked,
    with_packed,
)
from mpcformer.correlations.linear import input_mask
from mpcformer.correlations.requests import MaskKeys, Request, mask_keys, session_key, weight_mask_key
from mpcformer.errors import ProtocolError
from mpcformer.ring.packing import Operand

# So many elements may be expanded ahead of their use: 32 MiB.
MOST_AHEAD = 1 << 22


class CorrelationStore:
    """Expands an owner's seed operation by operation. At rank 0 it also holds the dealer's corrections until their use.

    Args:
        rank: 0 for the model owner, who receives corrections; 1 for the data owner, who gets everything from its seed.
        seed: 16 bytes that only this owner and the dealer know.
        session_id: 16 public bytes.

    Attributes:
        next_operation: the index of the operation that is taken next.
        first_operation: the index of the first operation that is this store's, if it is a part of another; else 0.
    """

    def __init__(self, *, rank: int, seed: bytes, session_id: bytes) -> None:
        self.rank = rank
        self.next_operation = 0
        self._seed = seed
        self._session_id = session_id
        self._corrections: dict[int, tuple[Request, list[torch.Tensor]]] = {}
        self._prepared: dict[int, Dealt] = {}
        self._previewed: dict[int, Request] = {}
        # The operations of a reserved part, in order, and the masks of inputs that were derived ahead.
        self._expected: Sequence[Request] = ()
        self._input_masks: dict[int, torch.Tensor] = {}
        self._drawn: dict[int, list[torch.Tensor]] = {}
        self._masked_weights = False
        # The first operation that is not this store's, if it is a part of another.
        self.first_operation = 0
        self._end: int | None = None

    def reserve(self, n_operations: int, expected: Sequence[Request] = ()) -> "CorrelationStore":
        """Return a store of the next operations alone, which this one passes over.

        Batches whose computations overlap use a part of the session's operations each. Both owners reserve in the same
        order.

        Args:
            n_operations: how many; the part refuses more.
            expected: what they will be, for `work_ahead`.
        """
        part = CorrelationStore(rank=self.rank, seed=self._seed, session_id=self._session_id)
        part.next_operation, part._end, part._masked_weights = self.next_operation, self._checked(n_operations), True
        part.first_operation, part._expected = part.next_operation, expected
        self.next_operation = part._end
        return part

    def _require_own(self, operation: int) -> None:
        if self._end is not None and operation >= self._end:
            raise ProtocolError(f"operation {operation} lies beyond this batch's, which end at {self._end}")

    def _checked(self, n_operations: int) -> int:
        """Return the end of the next operations."""
        end = self.next_operation + n_operations
        if n_operations < 0 or (self._end is not None and end > self._end):
            what = f"{n_operations} operations from {self.next_operation} on do not end before {self._end}"
            raise ProtocolError(what)
        return end

    def put(self, operation: int, request: Request, correction: list[torch.Tensor]) -> None:
        """Keep the dealer's correction for `operation`, packed as it came, until it is taken.

        Rank 1 has those alone that rank 0 passes on.

        Raises:
            ProtocolError: this is rank 1 and the correction is not for it, the operation was used or has its
                correction, or the correction has another shape than the request asks for.
        """
        if self.rank != 0 and not is_shared(request):
            raise ProtocolError(f"rank 1 takes no correction for {request.kind}: its shares come from its seed")
        self._require_own(operation)
        if operation < self.next_operation or operation in self._corrections:
            raise ProtocolError(f"operation {operation} has its correlation already: a correlation is used once")
        arrived = tuple(Spec.of(tensor) for tensor in correction)
        if arrived != correction_specs(request):
            raise ProtocolError(f"operation {operation}: correction {arrived} for {request}")
        self._corrections[operation] = request, correction

    def passed_on(self, operation: int) -> list[torch.Tensor]:
        """Return the correction of an operation as it came from the dealer, for rank 1.

        Raises:
            ProtocolError: it is missing, or none that rank 1 may see.
        """
        known = operation in self._corrections and operation not in self._prepared
        if not known or not is_shared(self._corrections[operation][0]):
            raise ProtocolError(f"operation {operation} has no correction that rank 1 may see")
        return self._corrections[operation][1]

    def prepare(self, operation: int) -> None:
        """Expand an operation whose correction is here now, so that `take` need not.

        Raises:
            ProtocolError: its correction is missing, or it was prepared before.
        """
        if operation not in self._corrections or operation in self._prepared:
            raise ProtocolError(f"operation {operation} has no correction, or was prepared before")
        request, correction = self._corrections[operation]
        self._prepared[operation] = self._expanded(operation, request, correction)
        self._corrections[operation] = request, []

    def give_up(self, requests: Sequence[Request]) -> tuple[list[bytes], MaskKeys]:
        """Use up all operations of a reserved part, for an audit of the dealer.

        Args:
            requests: what the part's operations are for.

        Returns:
            This owner's keys of them, and its keys for masks, which mean something at rank 0 alone.

        Raises:
            ProtocolError: this is no reserved part, or one of its operations was taken.
        """
        first, end = self.next_operation, self.next_operation + len(requests)
        if self._end != end or self.first_operation != first:
            raise ProtocolError("keys are revealed of whole batches alone, of which nothing was used")
        self.next_operation = end
        self._corrections.clear()
        self._prepared.clear()
        self._input_masks.clear()
        self._drawn.clear()
        self._previewed.clear()
        keys = [self._key(first + n, request) for n, request in enumerate(requests)]
        return keys, mask_keys(self._seed, self._session_id, first)

    def preview(self, operation: int, request: Request) -> Dealt:
        """Return rank 1's part of a later operation, for what can be computed before the input is known.

        Raises:
            ProtocolError: this is rank 0, or the operation was used or looked at before.
        """
        self._require_own(operation)
        used = operation < self.next_operation or operation in self._previewed
        if self.rank != 1 or used or is_shared(request):
            raise ProtocolError(f"operation {operation} cannot be looked at ahead of its use, or again")
        self._previewed[operation] = request
        return expand(request, self._key(operation, request), 1, [])

    def skip(self, request: Request) -> None:
        """Count the next operation as used, because its part was kept when it was looked at ahead.

        Raises:
            ProtocolError: this is rank 0, or the operation was not looked at ahead.
        """
        if self.rank != 1:
            raise ProtocolError(f"{request.kind}: rank 0 must take its correlations")
        if self.next_operation not in self._previewed:
            raise ProtocolError(f"operation {self.next_operation} was not looked at ahead of its use")
        self._advance(request)

    def input_mask(self, request: Request) -> torch.Tensor:
        """Do as `skip`, and return the mask A of a linear map's input once more: int64 (rows, in).

        It is derived again, because that takes less time than keeping it packed takes memory.

        Raises:
            ProtocolError: as `skip`.
        """
        operation = self.next_operation
        self.skip(request)
        ahead = self._input_masks.pop(operation, None)
        return input_mask(request, self._key(operation, request)) if ahead is None else ahead

    def work_ahead(self) -> None:
        """Expand this owner's part of the operations that come next, up to the next linear map and what follows it.

        It is to be called where the other owner is waited for, so that less is left to do when its message comes.
        Nothing happens where the operations are not known.
        """
        # The data owner expands what follows a map while it waits for the map's result.
        n_left, maps_left = MOST_AHEAD, 2 - self.rank
        coming = self._expected[self.next_operation - self.first_operation :]
        for operation, request in enumerate(coming, start=self.next_operation):
            is_map = request.kind == "linear"
            n_left -= math.prod(request.shapes[0]) if is_map else n_elements(request)
            if n_left < 0 or not maps_left:
                return
            maps_left -= is_map
            if is_map:
                if operation in self._previewed and operation not in self._input_masks:
                    self._input_masks[operation] = input_mask(request, self._key(operation, request))
            elif self.rank == 0 and stays_packed(request) and operation not in self._drawn:
                self._drawn[operation] = drawn(request, self._key(operation, request))
            elif self.rank == 1 and not is_shared(request) and operation not in self._prepared:
                self._prepared[operation] = self._expanded(operation, request, [])

    def weight_mask_key(self) -> bytes:
        """Return rank 0's key for the masks of its weights, once.

        Two models under the same mask would tell rank 1 their difference.

        Raises:
            ProtocolError: the key was asked for before.
        """
        if self._masked_weights:
            raise ProtocolError("the masks of a session's weights are used once", "open a session for each model")
        self._masked_weights = True
        return weight_mask_key(self._seed, self._session_id)

    def batch_key(self) -> bytes:
        """Return rank 0's key for the keys of tags of the batch whose operations this store holds."""
        return mask_keys(self._seed, self._session_id, self.first_operation).batch

    def take(self, request: Request) -> Dealt:
        """Return this owner's part of the next operation's correlation.

        Raises:
            ProtocolError: the correction is missing or was dealt for another request.
        """
        operation = self.next_operation
        correction = self._taken(request) if self.rank == 0 or is_shared(request) else []
        self._advance(request)
        prepared = self._prepared.pop(operation, None)
        return prepared or self._expanded(operation, request, correction)

    def take_packed(self, request: Request) -> Sequence[Operand]:
        """Do as `take`, but leave rank 0's corrections as they came where the protocol takes them like that.

        Raises:
            ProtocolError: as `take`.
        """
        operation = self.next_operation
        if self.rank != 0 or not stays_packed(request):
            return self.take(request).shares
        correction = self._taken(request)
        self._advance(request)
        ahead = self._drawn.pop(operation, None)
        shares = drawn(request, self._key(operation, request)) if ahead is None else ahead
        return with_packed(request, shares, correction)

    def _taken(self, request: Request) -> list[torch.Tensor]:
        """Return the correction of the next operation, which is not kept any longer."""
        operation = self.next_operation
        if operation not in self._corrections:
            raise ProtocolError(f"the dealer's correction for operation {operation} ({request.kind}) is missing")
        dealt_for, correction = self._corrections.pop(operation)
        if dealt_for != request:
            raise ProtocolError(f"operation {operation} was dealt for {dealt_for}, now {request} is asked for")
        return correction

    def _expanded(self, operation: int, request: Request, correction: list[torch.Tensor]) -> Dealt:
        known = unpacked(request, correction) if correction else []
        return expand(request, self._key(operation, request), self.rank, known)

    def _advance(self, request: Request) -> None:
        self._checked(1)
        before = self._previewed.get(self.next_operation, request)
        if before != request:
            raise ProtocolError(f"operation {self.next_operation} was looked at ahead as {before}, now {request}")
        self._previewed.pop(self.next_operation, None)
        self.next_operation += 1

    def _key(self, operation: int, request: Request) -> bytes:
        return session_key(self._seed, self._session_id, operation, request)

    def __repr__(self) -> str:
        return f"CorrelationStore(rank={self.rank}, next_operation={self.next_operation})"
