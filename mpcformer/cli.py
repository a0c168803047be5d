"""The `mpcformer` command. Packages register their commands as entry points: a function, or a group of functions."""

import os
import resource
import signal
import sys
from importlib.metadata import entry_points
from typing import Any

import typer

from mpcformer import __version__
from mpcformer.console import err_console, show_error
from mpcformer.errors import MPCFormerError, UserInputError, os_remedy
from mpcformer.machine import collect_rarely, spin_briefly
from mpcformer.options import Command

PROGRAM = "mpcformer"
INTERRUPTED = 130
# typer holds a private copy of click; this is the base of all that it raises about a command's arguments.
USAGE_ERROR: Any = typer.BadParameter.__base__

# The order of the commands in the help, by heading.
COMMANDS = {
    "First steps": ["demo", "doctor"],
    "Make a model": ["teacher", "distill-general", "distill"],
    "Run privately": ["ask", "gateway", "run", "infer", "export", "certs", "party", "coordinate"],
    "Measure": ["bench", "estimate", "replay"],
}
OTHER = "Other commands"


def _print_version(value: bool) -> None:
    if value:
        print(f"mpcformer {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the program with all commands of the entry point group `mpcformer.commands`, in a fixed order."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Private BERT inference: neither the text nor the model leaves its owner.",
    )

    @app.callback()
    def _root(
        version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, metavar="", help="Print the version."
        ),
    ) -> None: ...

    found = {point.name: point for point in entry_points(group="mpcformer.commands")}
    known = {name: heading for heading, names in COMMANDS.items() for name in names}
    for name in [*(name for name in known if name in found), *sorted(set(found) - set(known))]:
        command, heading = found[name].load(), known.get(name, OTHER)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=heading)
        else:
            app.command(name, cls=Command, rich_help_panel=heading)(command)
    return app


def main() -> None:
    """Run the command line. Every expected error ends in `error: WHAT`, `fix: REMEDY` and its own exit status."""
    # A core file would hold weights, text and shares; a terminated command cleans up as an interrupted one does.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    spin_briefly()
    collect_rarely()
    try:
        status = build_app()(prog_name=PROGRAM, standalone_mode=False)
    except MPCFormerError as error:
        show_error(error.what, error.remedy)
        sys.exit(error.exit_code)
    except OSError as error:
        show_error(f"{error.filename or PROGRAM}: {error.strerror or error}", os_remedy(error))
        sys.exit(UserInputError.exit_code)
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
