"""Correlated randomness from a dealer: what can be asked for, how it is made, and that it is used once."""

from mpcformer.correlations.kinds import Dealt, correction_specs, deal, expand, validate
from mpcformer.correlations.requests import Request, plan_digest, session_key
from mpcformer.correlations.store import CorrelationStore

__all__ = [
    "CorrelationStore",
    "Dealt",
    "Request",
    "correction_specs",
    "deal",
    "expand",
    "plan_digest",
    "session_key",
    "validate",
]
