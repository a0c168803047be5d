"""The measured programs between parties: right numbers, as many correlations as planned, costs as told."""

from pathlib import Path

import numpy as np
import pytest

from experiments.programs.cases import CASES, Case
from experiments.programs.measure import HERE, SERVICES, row_of, rows, saved_inputs
from mpcformer.programs import load_program
from parties.programs.deployed import run_deployed
from tests.parties.program_site import DATA_OWNER, MODEL_OWNER, program_site

QUICK = [case for case in CASES if case.quick]
BY_NAME = [case.name for case in CASES]


def test_quick_programs_between_services_are_right_and_cost_what_was_told(tmp_path: Path) -> None:
    saved = {case.name: saved_inputs(case, tmp_path / "inputs" / case.name) for case in QUICK}

    def entries(word: str) -> list[dict[str, object]]:
        found = []
        for case in QUICK:
            owners = load_program(case.path).program.owners
            inputs = {name: path for name, path in saved[case.name].items() if owners[name] == word}
            found.append({"name": case.name, "file": Path(case.path), "inputs": inputs})
        return found

    with program_site(tmp_path, entries("model"), entries("data")) as site:
        for case in QUICK:
            done = run_deployed(site.config, case.name)
            assert done is not None
            learnt = [path for party in (MODEL_OWNER, DATA_OWNER) for path in site.results(party)]
            results = {path.stem: np.load(path) for path in learnt if path.parent.name.startswith(f"{case.name}-")}
            assert not row_of(case, SERVICES, done, results).faults(), case.name
        assert site.is_clean()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", [HERE, SERVICES])
@pytest.mark.parametrize("case", CASES, ids=BY_NAME)
def test_each_program_is_right_and_costs_what_was_told(tmp_path: Path, case: Case, way: str) -> None:
    (row,) = rows([case], way, tmp_path)
    assert not row.faults()
    if row.accuracy is not None:
        assert row.accuracy[0] == row.accuracy[1] >= 0.9
