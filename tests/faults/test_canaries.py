"""The search for secrets finds secrets that are there."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.faults import canaries
from tests.tiny import GOOD


def test_it_finds_what_is_there(student: Path, tmp_path: Path) -> None:
    assert canaries.found(tmp_path, student) == []
    (tmp_path / "a.log").write_text(f"the text was {GOOD[1]}\n")
    (tmp_path / "b.log").write_text("seed 00112233445566778899aabbccddeeff\n")
    (tmp_path / "c.log").write_text("share -8123456789012345678\n")
    weights = load_file(student / "model.safetensors")
    (tmp_path / "dump").write_bytes(b"x" * 3 + weights["bert.pooler.dense.weight"].tobytes() + b"y")
    (tmp_path / "core.17").write_bytes(b"")
    names = {leak.partition(":")[0].partition(" ")[0] for leak in canaries.found(tmp_path, student)}
    assert names == {"a.log", "b.log", "c.log", "dump", "core.17"}
    (tmp_path / "fine.log").write_text("session 0011aabb, transcript 00112233aabbccdd\n")
    assert not [leak for leak in canaries.found(tmp_path, student) if leak.startswith("fine")]


@pytest.mark.parametrize("name", ["core.py", "scores.json"])
def test_names_that_only_look_like_cores(student: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert canaries.found(tmp_path, student) == []
