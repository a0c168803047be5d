"""The metrics of a party, for Prometheus on a loopback port: counts of sessions, bytes and seconds, never content."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from mpcformer.errors import UserInputError, os_remedy
from parties.settings.config import PartyCommon

REGISTRY = CollectorRegistry()
_SECONDS = (1, 3, 10, 30, 100, 300, 1000, 3000)

sessions = Gauge("mpcformer_sessions", "Sessions that are running.", registry=REGISTRY)
ended = Counter("mpcformer_sessions_ended", "Sessions that ended.", ["how"], registry=REGISTRY)
refused = Counter("mpcformer_sessions_refused", "Sessions turned away for lack of room.", registry=REGISTRY)
session_seconds = Histogram(
    "mpcformer_session_seconds", "Duration of sessions in seconds.", buckets=_SECONDS, registry=REGISTRY
)
batches = Counter("mpcformer_batches", "Batches computed.", registry=REGISTRY)
programs = Counter("mpcformer_programs", "Programs run.", registry=REGISTRY)
sentences = Counter("mpcformer_sentences", "Sentences computed.", registry=REGISTRY)
rounds = Counter("mpcformer_rounds", "Communication rounds.", registry=REGISTRY)
phase_seconds = Counter("mpcformer_phase_seconds", "Seconds of work by phase.", ["phase"], registry=REGISTRY)
received_bytes = Counter("mpcformer_received_bytes", "Bytes of frames received.", ["sender"], registry=REGISTRY)
audited = Counter("mpcformer_audited_batches", "Batches of which the dealer passed an audit.", registry=REGISTRY)
_ACCOUNT = ["student", "data_owner"]
budget_spent = Counter("mpcformer_budget_spent", "Sentences that a budget allowed.", _ACCOUNT, registry=REGISTRY)
budget_refused = Counter(
    "mpcformer_budget_refused", "Sentences that a budget did not allow.", _ACCOUNT, registry=REGISTRY
)
budget_left = Gauge(
    "mpcformer_budget_left", "Sentences that a budget still allows.", [*_ACCOUNT, "period"], registry=REGISTRY
)
shelf = Gauge("mpcformer_students", "Students that are served.", registry=REGISTRY)
reloads = Counter("mpcformer_reloads", "Times that a model owner read its file again.", ["how"], registry=REGISTRY)
asked_batches = Counter(
    "mpcformer_asked_batches",
    "Batches that the data owner asked, by when they were dealt.",
    ["dealt"],
    registry=REGISTRY,
)
certificate_ends = Gauge(
    "mpcformer_certificate_ends_seconds", "When a certificate ends, in Unix time.", ["file"], registry=REGISTRY
)
dealt_operations = Counter("mpcformer_dealt_operations", "Correlations dealt.", registry=REGISTRY)

# A rate of a series that appears with its first count would not show that count.
WELL, FAILED, AHEAD, LATE = "well", "failed", "ahead", "late"
for _counter, _labels in ((ended, (WELL, FAILED)), (asked_batches, (AHEAD, LATE)), (reloads, (WELL, FAILED))):
    for _label in _labels:
        _counter.labels(_label)


def forget_budget(student: str) -> None:
    """Forget what is left of the budgets of a student that is no longer served: an alert on it would never end."""
    for sample in [sample for family in budget_left.collect() for sample in family.samples]:
        if sample.labels["student"] == student:
            budget_left.remove(*(sample.labels[name] for name in (*_ACCOUNT, "period")))


def serve(config: PartyCommon) -> None:
    """Serve /metrics in the format of Prometheus on the configured port, if there is one."""
    if config.metrics is not None:
        host, _, port = config.metrics.rpartition(":")
        try:
            start_http_server(int(port), addr=host, registry=REGISTRY)
        except OSError as error:
            raise UserInputError(
                f"metrics: {config.metrics}: {error.strerror}", os_remedy(error, "choose another port")
            ) from None
