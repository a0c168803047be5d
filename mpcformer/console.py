"""The two consoles of the project. Tables and progress go to stdout, errors to stderr; neither ever receives a secret.

Text is shown as it is. Square brackets are units or part of a user's path, so nothing here reads them as markup.
"""

from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from mpcformer.errors import FIX, escaped


class PlainConsole(Console):
    """A console that takes no text for markup, for an emoji's name, or for something to highlight."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Show a spinner with a text. Rich would read the text's brackets as markup whatever the console says."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)


console = PlainConsole()
err_console = PlainConsole(stderr=True)


class PlainTable(Table):
    """A table that shows its title, headings and cells as they are, whatever console prints it.

    Args:
        title: the line above the table; it may be wider than the table.
        headings: one for each column.
        n_left: how many columns, from the left, hold words; the others hold numbers and are aligned to the right.
    """

    def __init__(self, title: str, *headings: str, n_left: int = 1) -> None:
        super().__init__()
        self._line = Text(title, style="table.title")
        for number, heading in enumerate(headings):
            self.add_column(Text(heading), justify="left" if number < n_left else "right", overflow="fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._line
        yield from super().__rich_console__(console, options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row of texts, or of anything else that rich can show."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def show_error(what: str, remedy: str = "") -> None:
    """Show an error on stderr: `error: WHAT`, and `fix: REMEDY` on a line of its own.

    Args:
        what: the thing that is wrong and its value.
        remedy: what to do about it. Both may hold another party's text, so control characters are escaped.
    """
    for label, style, text in (("error: ", "bold red", what), (FIX, "bold", remedy)):
        if text:
            err_console.print(Text.assemble((label, style), escaped(text)), soft_wrap=True)


def printable(text: str) -> str:
    """Return `text` with a question mark for each character that would control the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def progress(description_width: int = 22, *, shown: bool = True) -> Progress:
    """Return a progress bar with a free `info` field, the elapsed time and the time left.

    Args:
        description_width: the width of a task's description, in characters.
        shown: nothing appears on the terminal if this is false.
    """
    return Progress(
        TextColumn(f"{{task.description:<{description_width}}}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )
