"""The cost of a private batch: what an engine's `cost(shape)` returns."""

from collections.abc import Iterable
from dataclasses import dataclass

from mpcformer.correlations import Request, correction_specs


@dataclass(frozen=True)
class Cost:
    """The cost of one batch. Bytes are those of the tensors, without frames and TLS.

    Args:
        rounds: online messages that an owner must wait for, as `Counters.rounds` counts them.
        bytes_to_data_owner, bytes_to_model_owner: online.
        offline_bytes_to_model_owner: what the data owner sends before its input is used.
        offline_bytes_to_data_owner: corrections of the dealer that the model owner passes on.
        dealer_bytes: corrections that the dealer sends to the model owner.
        setup_bytes: what the owners send to each other once a session.
    """

    rounds: int
    bytes_to_data_owner: int
    bytes_to_model_owner: int
    offline_bytes_to_model_owner: int
    offline_bytes_to_data_owner: int
    dealer_bytes: int
    setup_bytes: int

    @property
    def online_bytes(self) -> int:
        """The online bytes in both directions together."""
        return self.bytes_to_data_owner + self.bytes_to_model_owner

    def network_seconds(self, rtt_s: float, rate_bytes_s: float) -> float:
        """Return the online time on the wire: half a round trip for each round, plus the bytes at the link's rate."""
        return self.rounds * rtt_s / 2 + self.online_bytes / rate_bytes_s


def dealer_bytes(requests: Iterable[Request]) -> int:
    """Return the bytes of all corrections of these correlations."""
    return sum(spec.n_bytes for request in requests for spec in correction_specs(request))
