"""The model owner's side of a program's run: its own process computes, and the service looks after it."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from mpcformer.engines.base import MODEL_OWNER
from parties.program_process.link import FrameLink
from parties.program_process.process import Part, Results, entry_of, task_of
from parties.program_process.task import STREAM
from parties.session.failure import telling
from parties.session.membership import Membership, peak_rss_bytes
from parties.settings import metrics
from parties.settings.config import ModelOwnerConfig
from parties.stubs import parties_pb2 as pb

log = logging.getLogger(__name__)


def run_hosted(
    config: ModelOwnerConfig,
    job: pb.Job,
    membership: Membership,
    expect: Callable[[dict[str, FrameLink]], AbstractContextManager[None]],
    charge: Callable[[int], int],
) -> None:
    """Run a program with a data owner, from its preparation to the last report.

    Args:
        config: the model owner's, which names the program.
        job: the session.
        membership: the connection to the data owner, which ordered it.
        expect: lets the data owner connect to these streams while the block runs.
        charge: counts sentences; returns 0, or what the data owner is told instead, see `Budget`.

    Raises:
        MPCFormerError: the session failed; nothing is left of it.
    """
    entry, started = entry_of(config.programs, job.program, config.id), time.perf_counter()
    task = task_of(entry, rank=MODEL_OWNER, ranks=(MODEL_OWNER,), threads=config.threads)
    with FrameLink() as link, Part(task, config.id, link) as part, telling(membership):
        membership.on_abort(lambda error: part.kill())
        membership.on_abort(lambda error: link.cancel())
        prepared = part.prepared(membership.check)
        with Results(entry, prepared["learns"], job.session_id) as results, expect({STREAM: link}):
            membership.send(ready=pb.Ready())
            ready_at = time.perf_counter()
            part.start(config, job, results.partial)
            late = f"its program {entry.name} is not done after {entry.limit_s:.0f} s"
            agreed = part.next(membership.check, entry.limit_s, late)
            sentences = max(1, agreed["n_numbers"]) if entry.counts_as is None else entry.counts_as
            part.tell_word(charge(sentences))
            left_s = max(1.0, entry.limit_s - (time.perf_counter() - ready_at))
            done = part.next(membership.check, left_s, late)
            if done["event"] == "done":
                _count(done)
                numbers = done["correlations"], done["bytes_from_dealer"]
                log.info("program %s: %d correlations as planned, %d bytes from the dealer", entry.name, *numbers)
            else:
                log.info("program %s: the budget of %s does not allow it", entry.name, job.data_owner)
            membership.part_done()
            seconds = time.perf_counter() - ready_at
            setup = pb.Phase(seconds=ready_at - started)
            transcript = bytes.fromhex(done.get("transcript", ""))
            membership.send(
                report=pb.Report(setup=setup, peak_rss_bytes=peak_rss_bytes(), transcript=transcript, seconds=seconds)
            )
            # Both owners are done, or there are no results.
            membership.dismissed()
            if done["event"] == "done":
                results.publish()


def _count(done: dict[str, float]) -> None:
    metrics.programs.inc()
    metrics.rounds.inc(done["rounds"])
    metrics.audited.inc(done["audited"])
    metrics.phase_seconds.labels("offline").inc(done["dealing_seconds"])
    metrics.phase_seconds.labels("online").inc(done["seconds"])
    metrics.received_bytes.labels("owner").inc(done["bytes_received"])
    metrics.received_bytes.labels("dealer").inc(done["bytes_from_dealer"])
