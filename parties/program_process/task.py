"""What the process of a program is told: first what to prepare, and then in which session to run it."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

# A program that is not done by then in its dry run waits for ever, in seconds.
DRY_RUN_LIMIT_S = 600.0
# How long a program and its inputs may take to load, in seconds.
LOADING_LIMIT_S = 120.0
# The stream between the owners.
STREAM = "program"


class _Line:
    """A dataclass that travels as one line of JSON."""

    def line(self) -> str:
        """Return the line, without its end."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def of(cls, line: str) -> Any:
        """Read a line that `line` gave."""
        found = json.loads(line)
        return cls(**{each.name: found[each.name] for each in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task(_Line):
    """What to prepare: the program is loaded, this owner's inputs are read, and its correlations are planned.

    Args:
        rank: this owner's, 0 for the model owner.
        name: the program's name in the owners' files.
        program: FILE, or FILE:NAME.
        inputs: the files of this owner's inputs by their names.
        all_inputs: whether `inputs` has the other owner's too, as on a machine of one user; they are looked at alone.
        plan_only: whether inputs may be missing, because nothing will be run.
        ranks: the owners for whom the program is planned.
        threads: torch's threads.
        dry_run_limit_s: how long the dry run may take.
    """

    rank: int
    name: str
    program: str
    inputs: dict[str, str]
    all_inputs: bool = False
    plan_only: bool = False
    ranks: tuple[int, ...] = (0, 1)
    threads: int = 1
    dry_run_limit_s: float = DRY_RUN_LIMIT_S


@dataclass(frozen=True)
class Start(_Line):
    """In which session to run it.

    Args:
        config: the owner's configuration as JSON.
        job: the message `Job` in hex digits.
        results: the folder for the results that this owner learns; empty if it learns none.
    """

    config: str
    job: str
    results: str
