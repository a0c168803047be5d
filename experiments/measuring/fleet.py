"""How many sentences a fleet answers: an uncontended model, made of the measured parts of one batch.

Uncontended means that work never waits for other work that wants the same processor or link at that moment. Each bound
below is therefore an upper bound, and a real fleet answers less when it is close to one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parties.runs.network import NetworkProfile

DEALER, MODEL_OWNER, DATA_OWNER = "dealer", "model-owner", "data-owner"
PARTIES = (DEALER, MODEL_OWNER, DATA_OWNER)


@dataclass(frozen=True)
class BatchCost:
    """What one batch takes, measured on a machine that does nothing else.

    Args:
        sentences: sentences of the batch.
        tokens: its padded length.
        offline_cpu_s, online_cpu_s: processor seconds of each party before the text is read, and from then on.
        dealer_bytes: what the dealer sends to the model owner.
        offline_bytes, online_bytes: what the owners send each other, both ways together.
        rounds: messages of the online part that wait for one another.
    """

    sentences: int
    tokens: int
    offline_cpu_s: dict[str, float]
    online_cpu_s: dict[str, float]
    dealer_bytes: int
    offline_bytes: int
    online_bytes: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Return the values for a record."""
        return asdict(self)

    def cpu_s(self, party: str) -> float:
        """Return all processor seconds of a party."""
        return self.offline_cpu_s[party] + self.online_cpu_s[party]

    def wire_bytes(self, party: str) -> float:
        """Return what passes a party's link in the direction that carries more. The owners send about the same."""
        between = (self.offline_bytes + self.online_bytes) / 2
        return {
            DEALER: self.dealer_bytes,
            MODEL_OWNER: self.dealer_bytes + between,
            DATA_OWNER: between,
        }[party]

    def online_s(self, network: NetworkProfile | None) -> float:
        """Return the time from text to answer: the owners compute in turns, and each round takes half a round trip."""
        computing = self.online_cpu_s[MODEL_OWNER] + self.online_cpu_s[DATA_OWNER] + self.online_cpu_s[DEALER]
        if network is None:
            return computing
        return computing + self.rounds * network.rtt_s / 2 + self.online_bytes / 2 / network.bytes_s

    def offline_s(self, network: NetworkProfile | None) -> float:
        """Return the time to deal a batch: the parties work and send at the same time, so the slowest part tells it."""
        computing = max(self.offline_cpu_s.values())
        if network is None:
            return computing
        return max(computing, (self.dealer_bytes + self.offline_bytes / 2) / network.bytes_s)

    def session_s(self, network: NetworkProfile | None) -> float:
        """Return how long one session takes for a batch, if it deals one while it answers another."""
        return max(self.online_s(network), self.offline_s(network))


@dataclass(frozen=True)
class Bound:
    """A rate that cannot be exceeded, in sentences a second, and what sets it."""

    sentences_s: float
    why: str


def one_machine(cost: BatchCost, cores: int, sessions: int) -> Bound:
    """Return the rate of all three parties on one machine."""
    computing = cores / sum(cost.cpu_s(party) for party in PARTIES)
    bounds = (Bound(sessions / cost.session_s(None), "sessions"), Bound(computing, "processors"))
    return _of_sentences(min(bounds, key=lambda bound: bound.sentences_s), cost)


def fleet(cost: BatchCost, machines: Mapping[str, int], cores: int, sessions: int, network: NetworkProfile) -> Bound:
    """Return the rate of parties on machines of their own.

    Args:
        cost: what a batch takes.
        machines: the number of machines of each party.
        cores: processor cores of each machine.
        sessions: sessions of each model owner's machine at the same time.
        network: the link of each machine.
    """
    bounds = [Bound(machines[MODEL_OWNER] * sessions / cost.session_s(network), "sessions")]
    for party in PARTIES:
        bounds.append(Bound(machines[party] * cores / cost.cpu_s(party), f"processors, {party}"))
        bounds.append(Bound(machines[party] * network.bytes_s / cost.wire_bytes(party), f"link, {party}"))
    return _of_sentences(min(bounds, key=lambda bound: bound.sentences_s), cost)


def best_fleet(cost: BatchCost, n: int, cores: int, sessions: int, network: NetworkProfile) -> tuple[int, Bound]:
    """Return how many of n machines are best the dealers', and the rate; the others are model owners'.

    As many data owners' machines as model owners' ask them.

    Args:
        cost: what a batch takes.
        n: machines of dealers and model owners together, at least 2.
        cores, sessions, network: as for `fleet`.
    """
    splits = {
        dealers: fleet(
            cost, {DEALER: dealers, MODEL_OWNER: n - dealers, DATA_OWNER: n - dealers}, cores, sessions, network
        )
        for dealers in range(1, n)
    }
    return max(splits.items(), key=lambda item: item[1].sentences_s)


def _of_sentences(batches: Bound, cost: BatchCost) -> Bound:
    return Bound(batches.sentences_s * cost.sentences, batches.why)
