"""The folder of a run has the name that its state asks for, and a manifest only when it is whole."""

from pathlib import Path

import pytest

from mpcformer.errors import UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.run_folder import MANIFEST, RunFolder, write_manifest


def begun(path: Path, text: str = "x") -> RunFolder:
    folder = RunFolder(path)
    folder.check_new()
    folder.start()
    (folder.partial / "results.json").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_succeeds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder = begun(tmp_path / "run")
    assert not folder.is_whole
    assert folder.manifest() == {}
    write_manifest(folder.partial, {"job": {"task": "sst2"}}, unlisted=["state.json"])
    folder.publish()
    assert names(tmp_path) == ["run"]
    assert folder.is_whole
    assert folder.manifest()["job"] == {"task": "sst2"}
    assert folder.manifest()["sha256"] == {"results.json": sha256_file(tmp_path / "run" / "results.json")}
    with pytest.raises(UserInputError, match="is not empty"):
        begun(tmp_path / "run")


def test_an_interrupted_run_is_in_the_way_until_it_is_resumed_or_discarded(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    assert folder.unfinished == folder.partial
    with pytest.raises(UserInputError, match=r"run\.partial is left from an interrupted run"):
        folder.check_not_interrupted()
    folder.start()
    assert names(folder.partial) == ["results.json"], "an interrupted run keeps its files"
    folder.discard()
    folder.check_not_interrupted()
    assert not list(tmp_path.iterdir())


def test_a_failed_run_is_kept_until_the_next_one_fails(tmp_path: Path) -> None:
    begun(tmp_path / "run", "first").fail()
    assert names(tmp_path) == ["run.failed"]
    folder = begun(tmp_path / "run", "second")
    assert folder.unfinished == folder.partial
    folder.fail()
    assert names(tmp_path) == ["run.failed"]
    assert folder.unfinished == folder.failed
    folder.reopen()
    assert (folder.partial / "results.json").read_text() == "second"


def test_a_part_becomes_the_result(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    (folder.partial / "best").mkdir()
    (folder.partial / "best" / "weights").touch()
    folder.publish(folder.partial / "best")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["weights"]


def test_a_folder_that_is_filled_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "run").filled():
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
    begun(tmp_path / "run")
    with RunFolder(tmp_path / "run").filled() as inside:
        assert not list(inside.iterdir()), "what an earlier attempt left is gone"
    assert names(tmp_path) == ["run"]


def test_work_in_place_takes_the_manifest_away_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start_in_place()
    write_json(tmp_path / "run" / "state.json", {})
    write_manifest(tmp_path / "run", {"asked": 1}, unlisted=["state.json"])
    assert folder.manifest()["sha256"] == {}
    folder.start_in_place()
    assert not folder.is_whole
    assert names(tmp_path / "run") == ["state.json"]


def test_a_whole_run_moves_into_another_folder(tmp_path: Path) -> None:
    folder = begun(tmp_path / "demo" / "run", "new")
    (folder.partial / "logs").mkdir()
    write_manifest(folder.partial, {"job": {}})
    folder.publish()
    (tmp_path / "demo" / "results.json").write_text("old")
    (tmp_path / "demo" / "logs").mkdir()
    (tmp_path / "demo" / "logs" / "old.log").touch()
    folder.move_into(tmp_path / "demo")
    assert names(tmp_path / "demo") == ["logs", MANIFEST, "results.json"]
    assert names(tmp_path / "demo" / "logs") == []
    listed = read_json(tmp_path / "demo" / MANIFEST)["sha256"]
    assert listed == {"results.json": sha256_file(tmp_path / "demo" / "results.json")}
