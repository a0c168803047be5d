"""Correlated randomness from a dealer: what can be asked for, how it is made, and that it is used once.

Each protocol of `mpcformer.protocols` has a module of the same name here, which holds what the dealer makes for it;
`beaver` holds the generic kinds, `sign` and `equality` the keys with which programs may compare. `kinds` lists them
all.
"""

from mpcformer.correlations.kinds import (
    Dealt,
    correction_specs,
    deal,
    drawn,
    expand,
    is_shared,
    kept_bytes,
    sketch,
    stays_packed,
    unpacked,
    validate,
    with_packed,
)
from mpcformer.correlations.requests import (
    MaskKeys,
    Request,
    correlation_plan_digest,
    mask_keys,
    session_key,
    weight_mask_key,
)
from mpcformer.correlations.store import CorrelationStore

__all__ = [
    "CorrelationStore",
    "Dealt",
    "MaskKeys",
    "Request",
    "correction_specs",
    "correlation_plan_digest",
    "deal",
    "drawn",
    "expand",
    "is_shared",
    "kept_bytes",
    "mask_keys",
    "session_key",
    "sketch",
    "stays_packed",
    "unpacked",
    "validate",
    "weight_mask_key",
    "with_packed",
]
