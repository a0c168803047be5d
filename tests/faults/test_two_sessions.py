"""Services that run two sessions at once: whatever ends the one, the other goes on and loses no answer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcformer.errors import PartyError
from parties.roles.coordinator import Coordinator
from parties.roles.journal import Journal
from parties.roles.results import Results
from parties.roles.start_party import _take_part
from parties.session.evidence import Weight
from parties.settings.config import CoordinatorConfig, DataOwnerConfig, PeerAddress
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from tests.faults.cast import Cast, _child, _party, cast_of
from tests.forked import context
from tests.ports import free_port

N_EXAMPLES, SERVICES = 10, ("dealer", "model-owner")


@pytest.fixture
def cast(student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Cast]:
    with cast_of(tmp_path, student, data_dir, JobDescription("sst2", batch_size=1, limit=N_EXAMPLES)) as made:
        made.start(*SERVICES, once=False)
        yield made


class Session:
    """A coordinator in a thread of this process; its data owner is another one, or a process that can be killed."""

    def __init__(self, cast: Cast, name: str, *, in_process: bool = False) -> None:
        before, owner = cast.configs["coordinator"], cast.configs["data-owner"]
        assert isinstance(before, CoordinatorConfig)
        assert isinstance(owner, DataOwnerConfig)
        listen = f"127.0.0.1:{free_port()}"
        addresses = {
            each: PeerAddress(id=each, address=cast.configs[each].listen)  # type: ignore[union-attr]
            for each in SERVICES
        }
        config = before.model_copy(
            update={"listen": listen, "dealer": addresses["dealer"], "model_owner": addresses["model-owner"]}
        )
        data_owner = owner.model_copy(update={"coordinator": PeerAddress(id="coordinator", address=listen)})
        self.n_batches = 0
        self.results: Results | None = None
        self.error: Exception | None = None
        self.coordinator = Coordinator(
            config, journal=Journal(cast.folder / f"{name}.jsonl", {}), on_progress=self._progress
        )
        self.process = None
        if in_process:
            path = cast.folder / f"data-owner-{name}.toml"
            path.write_text(to_toml(data_owner))
            log = cast.folder / f"data-owner-{name}.log"
            self.process = context.Process(target=_child, args=(log, None, _party, path, True))
            self.process.start()
        else:
            threading.Thread(target=_take_part, args=(data_owner,), daemon=True).start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _progress(self, now: pb.Progress) -> None:
        self.n_batches = now.batch

    def _run(self) -> None:
        try:
            self.results = self.coordinator.run_job()
        except Exception as error:
            self.error = error
        finally:
            self.coordinator.stop()

    def reached(self, batch: int) -> None:
        """Wait until the session is at this batch."""
        deadline = time.monotonic() + 60
        while self.n_batches < batch and self._thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> None:
        """Wait for the end."""
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.parametrize(
    ("way", "at"),
    [("kill", 1), pytest.param("kill", 8, marks=pytest.mark.slow), ("abort", 3)]
    + [pytest.param("abort", at, marks=pytest.mark.slow) for at in (1, 8)],
)
def test_the_other_session_does_not_notice(cast: Cast, way: str, at: int) -> None:
    struck = Session(cast, "struck", in_process=way == "kill")
    other = Session(cast, "other")
    other.reached(1)
    struck.reached(at)
    if struck.process is not None:
        struck.process.kill()
    else:
        struck.coordinator.blame(Weight.VANISHED, PartyError("coordinator", "it was interrupted"))
    struck.end()
    other.end()
    assert isinstance(struck.error, PartyError), struck.error
    assert struck.error.party == ("data-owner" if way == "kill" else "coordinator")
    assert other.error is None
    assert other.results is not None
    assert sorted(other.results.predictions.rows) == list(range(N_EXAMPLES))
    for name in SERVICES:
        assert cast.processes[name].exitcode is None
        assert "unexpected" not in cast.said(name)
