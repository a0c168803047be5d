"""The `mpcformer` command. Thin: packages register each command, a function or a group of them, as an entry point."""

import os
import resource
import signal
import sys
from importlib.metadata import entry_points

import typer
from rich.markup import escape

from mpcformer import __version__
from mpcformer.console import err_console
from mpcformer.errors import MPCFormerError

ORDER = [
    "demo",
    "teacher",
    "distill-general",
    "distill",
    "infer",
    "export",
    "certs",
    "party",
    "coordinate",
    "bench",
    "estimate",
    "replay",
    "doctor",
]


def _print_version(value: bool) -> None:
    if value:
        print(f"mpcformer {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Collect the commands of group `mpcformer.commands`, in a fixed order."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Private BERT inference: neither the text nor the model leaves its owner.",
    )

    @app.callback()
    def _root(
        version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ) -> None: ...

    found = {point.name: point for point in entry_points(group="mpcformer.commands")}
    for name in [*[n for n in ORDER if n in found], *sorted(set(found) - set(ORDER))]:
        command = found[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def printable(text: str) -> str:
    """Text that may be another party's, as the terminal shall show it: no markup, no control characters."""
    return escape("".join(char if char.isprintable() or char == "\n" else "?" for char in text))


def main() -> None:
    """Run the command line; every expected error ends in one message and its own exit status."""
    # A core file would hold weights, text and shares; a terminated command cleans up as an interrupted one does.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        build_app()()
    except MPCFormerError as error:
        err_console.print(f"[bold red]error[/] {printable(error.what)}", soft_wrap=True)
        if error.remedy:
            err_console.print(f"  [bold]do[/] {printable(error.remedy)}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err_console.print("interrupted")
        sys.exit(130)
