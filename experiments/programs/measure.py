"""Runs the cases on this machine, or between services that serve all of them, and compares with what was told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.programs.cases import MAX_ERROR, Arrays, Case
from mpcformer.engines.base import DATA_OWNER
from mpcformer.programs import load_program
from parties.programs.command import told_bytes
from parties.programs.deployed import ProgramRun, run_deployed
from parties.programs.local import run_here
from parties.programs.site import LocalSite, split
from parties.settings.config import ProgramEntry
from parties.settings.config_file import to_toml

HERE, SERVICES = "here", "services"
# Told costs may differ so much from the measured ones.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Row:
    """What one run gave.

    Args:
        case: the program.
        way: HERE or SERVICES.
        error: the largest difference from the right results.
        told: what was told before, see `ProgramRun`.
        report: what the data owner measured.
        accuracy: of the private and of the plaintext logits, if the case has classes.
    """

    case: Case
    way: str
    error: float
    told: dict[str, Any]
    report: dict[str, Any]
    accuracy: tuple[float, float] | None

    @property
    def n_bytes(self) -> int:
        """The bytes between the owners, both ways."""
        return int(self.report["bytes_received"] + self.report["bytes_sent"])

    @property
    def told_rounds(self) -> int:
        """The rounds that were told, as the data owner counts them."""
        return int(self.told["owner_rounds"][DATA_OWNER])

    def faults(self) -> list[str]:
        """Return what is not as it should be; nothing if all is."""
        found = []
        if not self.error <= MAX_ERROR:
            found.append(f"an error of {self.error:.4f}")
        if self.report["correlations"] != self.told["n_requests"]:
            found.append(f"{self.report['correlations']} correlations, {self.told['n_requests']} planned")
        if self.report["rounds"] != self.told_rounds:
            found.append(f"{self.report['rounds']} rounds, {self.told_rounds} told")
        if abs(self.n_bytes - told_bytes(self.told)) > TOLERANCE * told_bytes(self.told):
            found.append(f"{self.n_bytes} bytes, {told_bytes(self.told)} told")
        return found


def rows(cases: Iterable[Case], way: str, folder: Path) -> Iterator[Row]:
    """Run cases, and yield what each gave.

    Args:
        cases: the cases.
        way: HERE, where each run has parties of its own, or SERVICES, which serve all cases.
        folder: an empty one.
    """
    saved = {case.name: saved_inputs(case, folder / case.name) for case in cases}
    cases = [case for case in cases if case.name in saved]
    if way == HERE:
        for case in cases:
            done = run_here(case.path, saved[case.name], folder / case.name / "out")
            yield row_of(case, way, done, {path.stem: np.load(path) for path in done.files})
        return
    entries = []
    for case in cases:
        entry = ProgramEntry(name=case.name, file=Path(case.path), inputs=saved[case.name])
        entries.append(split(entry, load_program(case.path).program.owners))
    with LocalSite(entries) as site:
        path = folder / "data-owner.toml"
        path.write_text(to_toml(site.data_owner()))
        for case in cases:
            ran = run_deployed(path, case.name)
            assert ran is not None
            results = {name: np.load(site.result(f"{name}.npy", case.name)) for name in ran.told["reveal"]}
            yield row_of(case, way, ran, results)


def saved_inputs(case: Case, folder: Path) -> dict[str, Path]:
    """Save a case's inputs in a new folder; return their files by their names."""
    folder.mkdir(parents=True)
    paths = {}
    for name, value in case.inputs().items():
        if isinstance(value, dict):
            paths[name] = folder / f"{name}.npz"
            np.savez(paths[name], **value)
        else:
            paths[name] = folder / f"{name}.npy"
            np.save(paths[name], value)
    return paths


def row_of(case: Case, way: str, done: ProgramRun, results: Arrays) -> Row:
    """Compare a run with the right results; `results` are those of both owners by their names."""
    right = case.right(case.inputs())
    error = max(float(np.abs(results[name].astype(float) - right[name]).max()) for name in right)
    accuracy = None
    if case.classes is not None:
        classes = case.classes()
        private, plain = (float((each["logits"].argmax(1) == classes).mean()) for each in (results, right))
        accuracy = private, plain
    return Row(case, way, error, done.told, done.report, accuracy)
