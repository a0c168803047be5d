"""Large tables lie in files without a name, and give the same numbers."""

import errno
import io
import tempfile
from pathlib import Path

import pytest
import torch

from mpcformer.correlations.linear import times_weight
from mpcformer.ring import filed
from mpcformer.ring.filed import FiledTable, kept_in_file
from mpcformer.ring.random import Stream, fresh_key


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(filed, "LARGE_TABLE", 10_000)
    return tmp_path


def test_rows_are_those_of_the_table(folder: Path) -> None:
    table = Stream(fresh_key()).int32((2000, 60))
    kept = kept_in_file(table)
    assert isinstance(kept, FiledTable)
    assert list(folder.iterdir()) == []
    rows = torch.tensor([0, 1999, 7, 7, 1024])
    assert torch.equal(kept[rows], table[rows])
    assert torch.equal(kept[1998:], table[1998:])
    assert kept[torch.tensor([], dtype=torch.int64)].shape == (0, 60)
    assert torch.equal(kept.unpacked(), table)
    x = Stream(fresh_key()).int64((3, 2000))
    assert torch.equal(times_weight(x, kept, 32) & 0xFFFFFFFF, times_weight(x, table, 32) & 0xFFFFFFFF)


def test_small_tables_and_those_without_a_file_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Stream(fresh_key()).int32((20, 6)), Stream(fresh_key()).int32((2000, 60))
    assert kept_in_file(small) is small

    class FullDisk(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullDisk())
    assert kept_in_file(large) is large
