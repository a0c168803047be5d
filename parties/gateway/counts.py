"""The metrics of a gateway, for Prometheus: counts, never content.

How many texts were refused is the data owner's own to know. These metrics are therefore told only to whoever has the
token, and no party serves them.
"""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from parties.settings import metrics

REGISTRY = CollectorRegistry()
ANSWERED, REFUSED = "answered", "refused"
texts = Counter("mpcformer_gateway_texts", "Texts by what became of them.", ["outcome"], registry=REGISTRY)
errors = Counter("mpcformer_gateway_errors", "Replies that say what is wrong.", ["status"], registry=REGISTRY)
uploads_by_state = Gauge("mpcformer_gateway_uploads", "Uploads by what they do.", ["state"], registry=REGISTRY)

# A rate of a series that appears with its first count would not show that count.
for _outcome in (ANSWERED, REFUSED):
    texts.labels(_outcome)
for _status in ("429", "500", "503"):
    errors.labels(_status)


def count(answer: Mapping[str, Any]) -> None:
    """Count a text."""
    texts.labels(REFUSED if answer.get("refused") else ANSWERED).inc()


def shown(uploads: Mapping[str, int]) -> bytes:
    """Return all metrics in the format of Prometheus, with those of the sessions.

    Args:
        uploads: how many there are in each state.
    """
    for state, n in uploads.items():
        uploads_by_state.labels(state).set(n)
    return bytes(generate_latest(metrics.REGISTRY) + generate_latest(REGISTRY))
