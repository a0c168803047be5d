"""Correlated randomness from a dealer: what can be asked for, how it is made, and that it is used once."""

from mpcformer.correlations import piecewise as _piecewise
from mpcformer.correlations import row_lookup as _row_lookup  # these register their kinds
from mpcformer.correlations import suite as _suite
from mpcformer.correlations import zero_test as _zero_test
from mpcformer.correlations.kinds import Dealt, correction_specs, deal, expand, sketch, unpacked, validate
from mpcformer.correlations.requests import Request, plan_digest, session_key, weight_mask_key
from mpcformer.correlations.store import CorrelationStore

assert _row_lookup
assert _suite
assert _piecewise
assert _zero_test

__all__ = [
    "CorrelationStore",
    "Dealt",
    "Request",
    "correction_specs",
    "deal",
    "expand",
    "plan_digest",
    "session_key",
    "sketch",
    "unpacked",
    "validate",
    "weight_mask_key",
]
