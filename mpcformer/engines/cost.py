"""What a private batch will cost, counted without running it: the engine's own forward pass on shapes alone."""

from dataclasses import dataclass

from mpcformer.correlations import correction_specs
from mpcformer.engines.base import BatchShape, PublicModel, create_engine
from mpcformer.engines.crypten.engine import CrypTenEngine
from mpcformer.engines.dry_run import SilentChannel
from mpcformer.engines.lift.engine import MPCFormerEngine, rehearsal, setup_bytes
from mpcformer.ring.random import KEY_BYTES


@dataclass(frozen=True)
class Cost:
    """One batch. Bytes are those of the tensors, without frames and TLS; rounds as `Counters.rounds`."""

    rounds: int
    bytes_to_data_owner: int
    bytes_to_model_owner: int
    offline_bytes_to_model_owner: int
    dealer_bytes: int
    setup_bytes: int

    @property
    def online_bytes(self) -> int:
        """Both ways."""
        return self.bytes_to_data_owner + self.bytes_to_model_owner

    def network_seconds(self, rtt_s: float, rate_bytes_s: float) -> float:
        """Online time on the wire: half a round trip a round, and the bytes one after the other."""
        return self.rounds * rtt_s / 2 + self.online_bytes / rate_bytes_s


def estimate_batch(engine: str, public: PublicModel, shape: BatchShape) -> Cost:
    """Count one batch of `shape`.

    Raises:
        UserInputError: unknown engine, or one that cannot run the model's forms.
        RangeError: ranges that the engine cannot carry.
    """
    instance = create_engine(engine, party=1, public=public, channel=None, weights=None)
    segments = instance.plan(shape)
    dealt = sum(spec.n_bytes for plan in segments for request in plan for spec in correction_specs(request))
    if isinstance(instance, MPCFormerEngine):
        ahead = rehearsal(public, shape, "offline")[0].bytes_received
        online = rehearsal(public, shape, "online")[1]
        setup = setup_bytes(public)
    else:
        assert isinstance(instance, CrypTenEngine)
        # All its openings are two-way, so one owner's messages are the rounds.
        channel = SilentChannel()
        instance.dry_run(shape, channel)
        online = channel.counters
        ahead, setup = 0, KEY_BYTES
    return Cost(
        rounds=online.rounds,
        bytes_to_data_owner=online.bytes_received,
        bytes_to_model_owner=online.bytes_sent,
        offline_bytes_to_model_owner=ahead,
        dealer_bytes=dealt,
        setup_bytes=setup,
    )
