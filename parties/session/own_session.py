"""A session that a data owner orders for itself from dealer and model owner, without a coordinator."""

import threading

from mpcformer.errors import MPCFormerError, ProtocolError
from parties.session.failure import as_known
from parties.session.membership import Membership
from parties.session.orderer import Order, Orderer
from parties.settings.config import DataOwnerConfig
from parties.settings.job import JobDescription, ProgramJob
from parties.stubs import parties_pb2 as pb


class OwnSession:
    """Orders a session and takes part in it as its data owner. The session begins with the constructor.

    Args:
        config: the data owner's, which names dealer and model owner.
        description: what the parties compute.
        ready_timeout_s: how long dealer and model owner may take to get ready; None stands for `join_timeout_s`.

    Attributes:
        membership: the data owner's own part of the session.
        orderer: its other part, which has ordered the session.
    """

    def __init__(
        self,
        config: DataOwnerConfig,
        description: JobDescription | ProgramJob,
        *,
        ready_timeout_s: float | None = None,
    ) -> None:
        if config.dealer is None or config.model_owner is None:
            raise ProtocolError("a data owner that orders a session names dealer and model_owner in its file")
        order = Order.of(
            config,
            config.dealer,
            config.model_owner,
            data_owner=config.id,
            job=description,
            ready_timeout_s=ready_timeout_s,
        )
        self._config = config
        self.orderer = Orderer(order)
        self.membership = Membership(config, role=config.role, coordinator_id=config.id)
        self.membership.listen(self.orderer.members[config.id].outgoing())
        self.orderer.attach(config.id, self.membership.events())
        self._verdict: MPCFormerError | None = None
        self._watcher = threading.Thread(target=self._watch, name="orderer", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        job, orderer = self.orderer.new_job(), self.orderer

        def done() -> bool:
            return all(orderer.by_role[role].report is not None for role in ("model-owner", "data-owner"))

        try:
            orderer.run(job, done)
        except Exception as error:
            self._verdict = as_known(error, self._config.id)

    @property
    def is_alive(self) -> bool:
        """Whether the session has not ended."""
        return self._watcher.is_alive()

    def job(self) -> pb.Job:
        """Wait until dealer and model owner are ready, and return the job.

        Raises:
            MPCFormerError: the session was aborted.
        """
        job = self.membership.job()
        if job is None:
            raise ProtocolError("the session ended before it began")
        return job

    def failed(self, error: MPCFormerError) -> MPCFormerError:
        """End the session because of an error, and return the first cause."""
        cause = self.membership.fail(error)
        self._watcher.join()
        self.orderer.stop()
        return self._verdict or cause

    def close(self) -> None:
        """Wait a limited time for the end, and close the connections."""
        self._watcher.join(timeout=5.0)
        self.orderer.stop()

    def wait(self) -> None:
        """Wait for the end of a session that was aborted."""
        self._watcher.join()
