"""A large table of which a batch needs few rows, kept in a file and read row by row."""

import os
import tempfile
from typing import BinaryIO

import torch

from mpcformer.ring.packing import PackedMatrix

# From so many bytes on, `kept_in_file` makes a file of a table.
LARGE_TABLE = 32 << 20


class FiledTable:
    """An int32 matrix in a temporary file without a name, which is gone with the process.

    A mapping of the file would count for the process as soon as it is read, and the kernel maps far more around what is
    read than that. So rows are read one by one.

    Args:
        table: int32 (rows, columns).

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.shape: tuple[int, ...] = tuple(table.shape)
        self._file: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it stays open)
        content = _bytes_of(table.contiguous())
        while content:
            content = content[self._file.write(content) :]

    def __getitem__(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Return rows by their numbers (n,), or a range of them: int32 (n, columns)."""
        if isinstance(rows, slice):
            rows = torch.arange(self.shape[0])[rows]
        found = torch.empty((len(rows), self.shape[1]), dtype=torch.int32)
        for number, row in zip(rows.tolist(), found, strict=True):
            self._read(row, number)
        return found

    def unpacked(self) -> torch.Tensor:
        """Return the whole matrix."""
        found = torch.empty(self.shape, dtype=torch.int32)
        self._read(found, 0)
        return found

    def _read(self, into: torch.Tensor, first_row: int) -> None:
        content, at = _bytes_of(into), first_row * self.shape[1] * into.element_size()
        while content:
            n_read = os.preadv(self._file.fileno(), [content], at)
            if not n_read:
                raise OSError("a temporary file ended early")
            content, at = content[n_read:], at + n_read


# A masked weight as the data owner keeps it.
Masked = torch.Tensor | PackedMatrix | FiledTable


def _bytes_of(table: torch.Tensor) -> memoryview:
    return memoryview(table.view(-1).numpy()).cast("B")  # type: ignore[arg-type]


def kept_in_file(table: torch.Tensor) -> torch.Tensor | FiledTable:
    """Return an int32 table in a file, or the table itself if it is small or no file can be written."""
    if table.numel() * table.element_size() < LARGE_TABLE:
        return table
    try:
        return FiledTable(table)
    except OSError:
        return table
