"""Correlated randomness from a dealer: what can be asked for, how it is made, and that it is used once."""

from mpcformer.correlations import suite as _suite  # registers its kinds
from mpcformer.correlations.kinds import Dealt, correction_specs, deal, expand, sketch, unpacked, validate
from mpcformer.correlations.requests import Request, plan_digest, session_key, weight_mask_key
from mpcformer.correlations.store import CorrelationStore

assert _suite

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
