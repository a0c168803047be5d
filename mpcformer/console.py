"""The one console. Tables and progress go to stdout, errors to stderr; neither ever receives a secret."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)
err_console = Console(stderr=True, highlight=False)


def progress(description_width: int = 22, *, shown: bool = True) -> Progress:
    """A progress bar with a free `info` field, elapsed time and time left; nothing appears unless `shown`."""
    return Progress(
        TextColumn(f"{{task.description:<{description_width}}}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )
