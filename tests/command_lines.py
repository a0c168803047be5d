"""Command lines of the documents and of the help, parsed without being run."""

import shlex
from typing import Any

import typer.main

from mpcformer.cli import build_app


def parse(line: str) -> None:
    """Raise an exception if a command or an option does not exist, or an option lacks its value."""
    command: Any = typer.main.get_command(build_app())
    context: Any = command.context_class(command, info_name="mpcformer")
    words = shlex.split(line, comments=True)[1:]
    while words:
        _, rest, _ = command.make_parser(context).parse_args(list(words))
        if not hasattr(command, "commands"):
            assert not rest, f"{rest[0]!r} belongs to no option"
            return
        if not rest:
            return
        assert rest[0] in command.commands, f"there is no command {rest[0]!r}"
        command, words = command.commands[rest[0]], rest[1:]
        context = command.context_class(command, info_name=rest[0], parent=context)
