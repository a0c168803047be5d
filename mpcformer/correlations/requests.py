"""Requests to the dealer, and the keys of the randomness that answers them.

A plan is a list of requests. Both owners derive the same plan from public data alone, and the position of a request in
it is its operation index. Each (session, operation, request) has its own AES-128-CTR key for each owner, and is used
once: an owner that asks for another correlation at the same index gets other randomness, not the same randomness with
another meaning.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mpcformer.ring.random import derive_key

Shape = tuple[int, ...]
# What is computed from a request alone is kept for so many requests: those of the plans of a few shapes of batches.
KEPT_REQUESTS = 4096


@dataclass(frozen=True)
class Request:
    """One correlation, in the form in which it travels to the dealer and is hashed.

    The modules of the kinds give the fields their meaning and type: `TripleSpec`, `LinearSpec`, `LiftedSpec`,
    `TableSpec`, `PiecewiseSpec` and `LookupSpec` make requests and read them.

    Args:
        kind: the name of the kind, a key of `mpcformer.correlations.kinds.KINDS`.
        shapes: the operands' shapes.
        op: the variant of the kind, where it has variants.
        bits: the shift of a truncation; the width of the ring for all other kinds that have one.
        params: public numbers that the kind needs, such as the range of a table.
    """

    kind: str
    shapes: tuple[Shape, ...]
    op: str = ""
    bits: int = 0
    params: tuple[float, ...] = ()

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever two requests do, and stay the same when a request has travelled."""
        return _digest(self)


@lru_cache(KEPT_REQUESTS)
def _digest(request: Request) -> bytes:
    # Requests with 0.0 and -0.0 are equal, so they need the same digest: adding 0.0 takes the sign.
    params = [float(number) + 0.0 for number in request.params]
    fields = [request.kind, request.shapes, request.op, request.bits, params]
    return hashlib.sha256(json.dumps(fields).encode()).digest()


def session_key(seed: bytes, session_id: bytes, operation: int, request: Request) -> bytes:
    """Derive an owner's 16-byte key for one operation of one session."""
    return derive_key(seed, "correlation", session_id, operation, request.digest())


@dataclass(frozen=True, repr=False)
class MaskKeys:
    """The model owner's keys for what serves more than one operation, 16 bytes each; the dealer derives the same.

    Args:
        weights: for the masks of its weights, which serve the whole session.
        batch: for the keys of tags, which serve one batch: whether a tag was right tells something of its key.
    """

    weights: bytes
    batch: bytes


def weight_mask_key(seed: bytes, session_id: bytes) -> bytes:
    """Derive the model owner's 16-byte key for the masks of its weights. It serves the whole session."""
    return derive_key(seed, "weight masks", session_id)


def mask_keys(seed: bytes, session_id: bytes, first_operation: int) -> MaskKeys:
    """Derive the model owner's keys for the batch whose first operation has this index."""
    return MaskKeys(weight_mask_key(seed, session_id), derive_key(seed, "batch", session_id, first_operation))


def correlation_plan_digest(plan: Sequence[Request]) -> bytes:
    """Return 32 bytes that differ whenever two plans do."""
    return hashlib.sha256(b"".join(request.digest() for request in plan)).digest()
