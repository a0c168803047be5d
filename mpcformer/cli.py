"""The `mpcformer` command. Thin: each command is a function that a package registers as an entry point."""

import os
import sys
from importlib.metadata import entry_points

import typer

from mpcformer import __version__
from mpcformer.console import err_console
from mpcformer.errors import MPCFormerError

ORDER = [
    "demo",
    "teacher",
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
        app.command(name)(found[name].load())
    return app


def main() -> None:
    """Run the command line; every expected error ends in one message and its own exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        build_app()()
    except MPCFormerError as error:
        err_console.print(f"[bold red]error[/] {error.what}", soft_wrap=True)
        if error.remedy:
            err_console.print(f"  [bold]do[/] {error.remedy}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err_console.print("interrupted")
        sys.exit(130)
