"""Starts the process of a program, listens to it, and ends it."""

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, Self

from mpcformer.errors import MPCFormerError, PartyError, ProtocolError, RangeError, UserInputError, os_remedy
from parties.program_process.link import FrameLink
from parties.program_process.task import DRY_RUN_LIMIT_S, LOADING_LIMIT_S, Start, Task
from parties.settings.config import DataOwnerConfig, ModelOwnerConfig, ProgramEntry
from parties.stubs import parties_pb2 as pb

POLL_S = 0.2
MAX_NAME = 80
KINDS = {kind.exit_code: kind for kind in (UserInputError, ProtocolError, RangeError)}


class Part:
    """The process of a program, which prepares its part at once. Use it in a `with` block, whose end ends the process.

    Args:
        task: what it prepares.
        party_id: the owner's, which errors name.
        link: at the model owner, the stream of the data owner.
    """

    def __init__(self, task: Task, party_id: str, link: FrameLink | None = None) -> None:
        self._party_id = party_id
        given = () if link is None else (link.theirs.fileno(),)
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process = Popen(
            [sys.executable, "-m", "parties.program_process.part", *map(str, given)],
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=given,
            start_new_session=True,
            env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        )
        if link is not None:
            link.handed_over()
        self._lock, self._ended = threading.Lock(), False
        threading.Thread(target=self._listen, name="part", daemon=True).start()
        self._tell(task.line())

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(json.loads(line))
        self._said.put(None)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # A process that has ended says why, or that it has.
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def start(self, config: ModelOwnerConfig | DataOwnerConfig, job: pb.Job, results: Path | None) -> None:
        """Let the program run in a session.

        Args:
            config: the owner's.
            job: the session.
            results: the folder for its results, if it learns any.
        """
        written = "" if results is None else str(results)
        self._tell(Start(config.model_dump_json(), job.SerializeToString().hex(), written).line())

    def tell_word(self, word: int) -> None:
        """Tell the model owner's part what the budget allows."""
        self._tell(str(word))

    def prepared(self, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Wait until the program is prepared, and return what the process tells of it; see `next`."""
        # The process itself limits its dry run, and names the line; what it imports may take for ever, too.
        limit_s = LOADING_LIMIT_S + DRY_RUN_LIMIT_S
        late = f"its program is not planned after {limit_s:.0f} s"
        return self.next(check, limit_s, late, "let its file and its inputs load in less time")

    def next(
        self, check: Callable[[], None], limit_s: float, late: str, remedy: str = "give it a larger limit_s"
    ) -> dict[str, Any]:
        """Wait for what the process says next.

        Args:
            check: called several times a second; it raises if there is nothing to wait for any more.
            limit_s: how long to wait.
            late, remedy: what is wrong if that was too short, and what to do about it.

        Raises:
            MPCFormerError: the process failed, or ended without a word, or it takes too long.
        """
        deadline = time.monotonic() + limit_s
        while True:
            # What it has said already counts first: others may have noticed the same, and ended the session.
            with suppress(queue.Empty):
                said = self._said.get(timeout=POLL_S)
                break
            check()
            if time.monotonic() > deadline:
                raise PartyError(self._party_id, late, remedy)
        if said is None:
            check()
            raise PartyError(self._party_id, f"the process of its program {_ending(self._process.wait())}")
        if said["event"] == "failed":
            raise self._error(said)
        return said

    def _error(self, said: dict[str, Any]) -> MPCFormerError:
        kind = KINDS.get(said["exit_code"])
        if kind is not None:
            return kind(said["what"], said["remedy"], told=said["told"])
        error = PartyError(said["culprit"] or self._party_id, said["what"], said["remedy"])
        error.exit_code = said["exit_code"]
        return error

    def kill(self) -> None:
        """End the process at once, and those that the program started; nothing happens the second time."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


class Results:
    """The folder of one run's results, which has its name once all of them are there.

    Args:
        entry: the program, as the owner's file names it.
        learns: the names of the results that this owner learns.
        session_id: of the run.

    Raises:
        UserInputError: there is something to learn, and no folder for it.
    """

    def __init__(self, entry: ProgramEntry, learns: list[str], session_id: bytes) -> None:
        self._learns = learns
        self.partial: Path | None = None
        if not learns:
            return
        if entry.out is None:
            what = f"programs: this owner learns {', '.join(learns)} of {entry.name}, and no folder is named for it"
            raise UserInputError(what, "add `out` to this program in the owner's file")
        name = f"{entry.name}-{session_id.hex()[:8]}"
        self._final, partial = entry.out / name, entry.out / f"{name}.partial"
        self._made_out = not entry.out.exists()
        try:
            entry.out.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.mkdir(mode=0o700)
        except OSError as error:
            told = f"programs: the folder for the results of {entry.name} cannot be written to"
            what = f"programs: out of {entry.name}: {partial}: {error.strerror}"
            raise UserInputError(what, os_remedy(error, "name another folder"), told=told) from None
        self.partial = partial

    def publish(self) -> list[Path]:
        """Give the folder its name, and return the files in it."""
        if self.partial is None:
            return []
        self.partial.rename(self._final)
        self.partial = None
        return [self._final / f"{name}.npy" for name in self._learns]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not published."""
        if self.partial is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if self._made_out:
                with suppress(OSError):
                    self.partial.parent.rmdir()


def task_of(
    entry: ProgramEntry,
    *,
    rank: int,
    threads: int,
    ranks: tuple[int, ...] = (0, 1),
    all_inputs: bool = False,
    plan_only: bool = False,
) -> Task:
    """Return what the process of an owner's program is to prepare; see `Task`."""
    return Task(
        rank=rank,
        name=entry.name,
        program=str(entry.file),
        inputs={name: str(path) for name, path in entry.inputs.items()},
        all_inputs=all_inputs,
        plan_only=plan_only,
        ranks=ranks,
        threads=threads,
    )


def entry_of(programs: list[ProgramEntry], name: str, party_id: str) -> ProgramEntry:
    """Return a program of an owner's file.

    Raises:
        UserInputError: the file has no such program.
    """
    for entry in programs:
        if entry.name == name:
            return entry
    # The names of other programs are for no other party.
    raise UserInputError(
        f"program {name[:MAX_NAME]!r} is not in {party_id}'s configuration", "add it to [[programs]] in that file"
    )


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
