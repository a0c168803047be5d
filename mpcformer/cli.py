"""The `mpcformer` command. Thin: packages register each command, a function or a group of them, as an entry point."""

import os
import resource
import signal
import sys
from importlib.metadata import entry_points
from typing import Any

import typer

from mpcformer import __version__
from mpcformer.console import err_console, show_error
from mpcformer.errors import MPCFormerError, UserInputError

PROGRAM = "mpcformer"
INTERRUPTED = 130
# typer holds a private copy of click; this is the base of all that it raises about a command's arguments.
USAGE_ERROR: Any = typer.BadParameter.__base__

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


def main() -> None:
    """Run the command line. Every expected error ends in `error: WHAT`, `fix: REMEDY` and its own exit status."""
    # A core file would hold weights, text and shares; a terminated command cleans up as an interrupted one does.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        status = build_app()(prog_name=PROGRAM, standalone_mode=False)
    except MPCFormerError as error:
        show_error(error.what, error.remedy)
        sys.exit(error.exit_code)
    except USAGE_ERROR as error:
        show_usage_error(error)
        sys.exit(UserInputError.exit_code)
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        err_console.print("interrupted")
    sys.exit(status)


def show_usage_error(error: Any) -> None:
    """Show what is wrong with the arguments, in the same form as every other error.

    Args:
        error: a typer usage error. A group of commands that got no argument raises one too, after showing its help.
    """
    context = error.ctx
    if context is not None and type(error).__name__ == "NoArgsIsHelpError":
        return
    command = context.command_path if context is not None else PROGRAM
    show_error(f"{command}: {error.format_message().rstrip('.')}", f"see {command} --help")
