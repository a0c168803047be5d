"""Files are written as a whole or not at all, and existing files are not overwritten."""

from pathlib import Path

import pytest

from mpcformer.errors import UserInputError
from mpcformer.files import check_new_folder, read_json, sha256_file, write_json, write_text


def test_taken_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name, message in (("file", "is a file"), ("full", "is not empty")):
        with pytest.raises(UserInputError, match=message):
            check_new_folder(tmp_path / name)
    check_new_folder(tmp_path / "empty")
    check_new_folder(tmp_path / "absent")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(path, {"a": [1, 2.5]})
    assert read_json(path) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": [1, 2.5]}, "a failed write leaves the old file"
    write_text(path, "{")
    with pytest.raises(UserInputError, match="is not JSON"):
        read_json(path)
    with pytest.raises(UserInputError, match="does not exist"):
        read_json(tmp_path / "none")


def test_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "abc", "abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
