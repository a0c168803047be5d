"""The students that a model owner serves, by name. They are added, replaced and withdrawn while sessions run.

A session holds the student that it began with until its end, whatever stands on the shelf by then. A student that was
replaced or withdrawn is freed when the last of its sessions ends.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcformer.engines.base import PublicModel, load_public_model
from mpcformer.engines.registry import encode_weights, engine_names
from mpcformer.errors import RangeError, UserInputError, os_remedy
from mpcformer.files import sha256_file
from mpcformer.machine import give_freed_memory_back
from mpcformer.modeling.folder import RANGES, WEIGHTS
from mpcformer.modeling.weights_file import load_weights
from mpcformer.tasks.labels import known_names
from parties.session.budget import Account
from parties.session.transcript import facts_digest
from parties.settings import metrics
from parties.settings.config import ModelOwnerConfig, StudentEntry
from parties.stubs import parties_pb2 as pb

log = logging.getLogger(__name__)
LOCK_POLL_S = 0.5
# What the metrics of a student have behind its name when it is no longer on the shelf.
GONE = " (gone)"
# The most characters of a line about a student, such as its labels.
LONGEST = 200
RELOAD = "let the model owner read its file again to serve the new ones (systemctl reload, or SIGHUP)"
LISTED = "mpcformer ask --list-models --config FILE tells what it may ask; who else may is in the model owner's file"


class SharedWeights:
    """The student's weights as an engine computes with them, which all sessions share.

    They are those of the engine that was asked for last. The weights as they lie in the folder are not kept.

    Raises:
        UserInputError: the folder contains no student.
        RangeError: no engine can carry its ranges or weights.
    """

    def __init__(self, folder: Path, public: PublicModel) -> None:
        self._folder, self._public = folder, public
        self.sha256 = sha256_file(folder / WEIGHTS)
        self._lock = threading.Lock()
        self._engine, self._encoded = "", None
        refused = []
        for engine in engine_names():
            try:
                self.encoded(engine)
                return
            except RangeError as error:
                log.info("engine %s does not run this student: it is refused when it is asked for", engine)
                refused.append(error)
        raise refused[0]

    def encoded(self, engine: str, check: Callable[[], None] = lambda: None) -> Any:
        """Return the weights for an engine.

        Args:
            engine: its name.
            check: called while another session has its weights encoded; raises to end the wait.

        Raises:
            UserInputError: the weights have changed.
            RangeError: ranges or weights that this engine cannot carry.
        """
        while not self._lock.acquire(timeout=LOCK_POLL_S):
            check()
        try:
            if self._engine != engine:
                weights = load_weights(self._folder)
                if sha256_file(self._folder / WEIGHTS) != self.sha256:
                    raise UserInputError(
                        f"{self._folder / WEIGHTS} has changed since the model owner loaded it",
                        RELOAD,
                        told="its weights on the disk have changed since it loaded them",
                    )
                self._engine, self._encoded = "", None
                self._encoded = encode_weights(engine, self._public, weights)
                self._engine = engine
                # Sessions need less memory than this did.
                del weights
                give_freed_memory_back()
            return self._encoded
        finally:
            self._lock.release()

    def __repr__(self) -> str:
        return f"SharedWeights({self.sha256[:12]})"


class Student:
    """A student that was loaded and checked.

    Attributes:
        public: what is public of it.
        weights: its weights, which its sessions share.
        digest: hex SHA-256 of the file of weights.

    Raises:
        UserInputError: the folder contains no student, or somebody wrote to it meanwhile.
        RangeError: no engine can carry it.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = mark_of(folder)
        self.public = load_public_model(folder)
        self.weights = SharedWeights(folder, self.public)
        self.digest = self.weights.sha256
        if mark_of(folder) != self.mark:
            raise UserInputError(
                f"{folder} has changed while it was loaded", "put all of the student there first, and then load it"
            )

    def claim(self, name: str) -> pb.ModelClaim:
        """Return what is public of the student, as whoever may ask it is told."""
        return pb.ModelClaim(student=self.digest, facts=facts_digest(self.public), name=name, about=_about(self.public))

    def __repr__(self) -> str:
        return f"Student({self.digest[:12]})"


@dataclass(frozen=True)
class Served:
    """A student under its name.

    Args:
        entry: its place in the model owner's file, with all of its settings.
        student: the student.
    """

    entry: StudentEntry
    student: Student


class Shelf:
    """All students that are served.

    Args:
        config: the model owner's.

    Raises:
        UserInputError, RangeError: a student cannot be served; the error names it.
    """

    def __init__(self, config: ModelOwnerConfig) -> None:
        self._party_id = config.id
        # Replaced as a whole, so that nobody sees a part of it.
        self._served: dict[str, Served] = {}
        self.replace(config)

    def replace(self, config: ModelOwnerConfig) -> None:
        """Serve the students of this configuration from now on. If one of them cannot be served, nothing changes.

        Raises:
            UserInputError, RangeError: a student cannot be served; the error names it.
        """
        before = self._served
        known = {(each.entry.path.resolve(), each.student.mark): each.student for each in before.values()}
        served: dict[str, Served] = {}
        for entry in config.shelf():
            try:
                key = entry.path.resolve(), mark_of(entry.path)
                # Two names of one folder are one student in memory.
                student = known[key] = known.get(key) or Student(entry.path)
            except OSError as error:
                raise UserInputError(
                    f"students: {entry.name}: {error.filename}: {error.strerror}", os_remedy(error)
                ) from None
            except (UserInputError, RangeError) as error:
                if config.student is not None:
                    raise
                raise type(error)(f"students: {entry.name}: {error.what}", error.remedy, told=error.told) from None
            served[entry.name] = Served(entry, student)
        self._served = served
        metrics.shelf.set(len(served))
        for name in before:
            if name not in served or served[name].student is not before[name].student:
                log.info("student %s is %s", name, "replaced" if name in served else "withdrawn")
                metrics.forget_budget(name)
        for name, each in served.items():
            if name not in before or before[name].student is not each.student:
                log.info("serving student %s, sha256 %s...", name, each.student.digest[:12])

    def all(self) -> list[Served]:
        """Return all students."""
        return list(self._served.values())

    def for_data_owner(self, data_owner: str) -> list[Served]:
        """Return the students that a data owner may ask."""
        return [each for each in self._served.values() if each.entry.allows(data_owner)]

    def pick(self, name: str, data_owner: str) -> Served:
        """Return the student that a data owner asks for.

        Args:
            name: the student's name; if it is empty, the only one that the data owner may ask.
            data_owner: its id.

        Raises:
            UserInputError: this data owner may ask no such student, whether there is one or not; or it may ask several.
        """
        allowed = {each.entry.name: each for each in self.for_data_owner(data_owner)}
        if not self._served:
            raise UserInputError(
                f"{self._party_id} serves no student, but programs",
                "name one of its programs: mpcformer run NAME --config FILE",
            )
        if not name and len(allowed) == 1:
            return next(iter(allowed.values()))
        if not name and allowed:
            raise UserInputError(
                f"{data_owner} may ask several models, and the job names none",
                f"name one: --model NAME, or model in the file; {LISTED}",
            )
        if name not in allowed:
            log.warning("%s asks for %r, which is not there or which it may not ask", data_owner, name[:100])
            # The same words in both cases: names are known to those who may ask.
            raise UserInputError(f"{self._party_id} serves {data_owner} no such model", LISTED)
        return allowed[name]

    def account(self, data_owner: str, served: Served) -> Account:
        """Return the account of a data owner that asks a student, with the limits that the file says now.

        Args:
            data_owner: its id.
            served: the student, which may have left the shelf since the data owner's session began.
        """
        now = self._served.get(served.entry.name)
        is_there = now is not None and now.student is served.student
        entry = now.entry if now is not None and is_there else served.entry
        # What is left of the budget of the student that has taken its place is another series of the metric.
        name = entry.name if is_there else f"{entry.name}{GONE}"
        return Account(data_owner, entry.limits, weights=served.student.digest, student=name)

    def session_ended(self, served: Served) -> None:
        """Forget what metrics tell of a student that has left the shelf."""
        metrics.forget_budget(f"{served.entry.name}{GONE}")


def mark_of(folder: Path) -> tuple[str, ...]:
    """Return what tells a student from another one: the digests of its files.

    Raises:
        UserInputError: the folder contains no student.
    """
    load_public_model(folder)
    return tuple(sha256_file(folder / name) for name in (WEIGHTS, "config.json", RANGES))


def _about(public: PublicModel) -> dict[str, str]:
    config = public.config
    kind = "labels of tokens" if config.pooling == "each" else config.output
    return {
        "task": config.task or "",
        "answers": kind,
        "labels": ", ".join(known_names(config))[:LONGEST],
        "layers": str(config.num_hidden_layers),
        "hidden size": str(config.hidden_size),
        "positions": str(config.max_position_embeddings),
        "forms": f"{config.gelu} + {config.softmax}",
    }
