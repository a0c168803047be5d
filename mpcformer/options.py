"""Options of the command line: groups in the help, and values that are chosen from a registry by name.

The names come from the registries. They are read when a value is checked, completed by the shell or listed in the help,
because some registries import torch, for which no other command's help should wait.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from mpcformer.engines.registry import ALIASES, EMBEDDINGS, engine_names, resolve
from mpcformer.errors import UserInputError

# The groups of a command's help. Every option is in one of them.
INPUT = "Input"
TRAINING = "Model and training"
PRIVACY = "Privacy"
MACHINE = "Machine"
OUTPUT = "Output"

# With this before it, the example stands right below the sentence that says what a command does.
KEEP_LINES = "\b"

Names = Callable[[], Iterable[str]]


class Command(TyperCommand):
    """A command whose help lists the names that its options can take, and leaves itself out of the list."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Put the names in the place of each `{}`, and show the help."""
        for param in self.params:
            names = getattr(param.callback, "names", None)
            if names is not None:
                param.help = param.help.replace("{}", ", ".join(names()))  # type: ignore[attr-defined]
        ours = self.get_help_option(ctx)
        if ours is not None and self.params:
            ours.hidden = True
        if self.help and KEEP_LINES not in self.help:
            self.help = KEEP_LINES + self.help.replace("\n\n", "\n")
        super().format_help(ctx, formatter)


def option(*names: str, group: str, about: str, **more: Any) -> Any:
    """Return an option of a command.

    Args:
        names: the option's name, if it is not the parameter's own.
        group: under which heading the help shows it.
        about: its help text, in one short line.
        more: what else `typer.Option` takes.
    """
    return typer.Option(*names, help=about, rich_help_panel=group, **more)


def flag(name: str, *, group: str, about: str) -> Any:
    """Return an option without a value."""
    return typer.Option(name, help=about, rich_help_panel=group, metavar="")


def folder(name: str, *, group: str, about: str) -> Any:
    """Return an option that takes the path of a folder, which must be there."""
    return option(name, group=group, about=about, callback=_there(name, Path.is_dir, "a folder"))


def file(name: str, *, group: str, about: str) -> Any:
    """Return an option that takes the path of a file, which must be there."""
    return option(name, group=group, about=about, callback=_there(name, Path.is_file, "a file"))


def _there(name: str, is_right: Callable[[Path], bool], what: str) -> Callable[[Any], Any]:
    def checked(path: Any) -> Any:
        if path is not None and not is_right(path):
            found = f"is not {what}" if path.exists() else "does not exist"
            raise UserInputError(f"{name}: {path} {found}", f"give {what}, or check the path")
        return path

    return checked


def at_least(name: str, low: float, *, group: str, about: str) -> Any:
    """Return an option that takes a number which is not below `low`."""

    def checked(value: Any) -> Any:
        if value is not None and not value >= low:
            raise UserInputError(f"{name}: {value} is below {low}", f"give {low} or more")
        return value

    return option(name, group=group, about=about, callback=checked)


def choice(
    name: str,
    choices: Names,
    *,
    group: str,
    about: str,
    check: Callable[[str], str] | None = None,
    show_default: bool = True,
) -> Any:
    """Return an option that takes one of several names, or some of them if its parameter is a list.

    Args:
        name: the option's name.
        choices: gives the names.
        group: under which heading the help shows it.
        about: its help text; the names replace `{}` in it.
        check: gives the value to use for the value that was given; the default refuses whatever is not in `choices`.
        show_default: whether the help shows the default, if the help text does not.
    """
    one = check or (lambda value: one_of(name, value, choices()))

    def checked(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [one(each) for each in value]
        return value if value is None else one(value)

    def complete(incomplete: str) -> list[str]:
        return [each for each in choices() if each.startswith(incomplete)]

    checked.names = choices  # type: ignore[attr-defined]
    return typer.Option(
        name,
        help=about,
        rich_help_panel=group,
        metavar="<name>",
        callback=checked,
        autocompletion=complete,
        show_default=show_default,
    )


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Return the value of an option if it is one of its choices.

    Raises:
        UserInputError: it is none of them; the error lists them.
    """
    known = list(choices)
    if value not in known:
        raise UserInputError(f"{name}: {value!r} is unknown", f"choose one of: {', '.join(known)}")
    return value


def _tasks() -> Iterable[str]:
    from mpcformer.tasks.registry import TASKS

    return TASKS


def _gelu_forms() -> Iterable[str]:
    from mpcformer.approximations import GELU_FORMS

    return GELU_FORMS


def _softmax_forms() -> Iterable[str]:
    from mpcformer.approximations import SOFTMAX_FORMS

    return SOFTMAX_FORMS


def _engine(name: str) -> str:
    """Return an engine's present name; a former one is taken too, and the terminal says so."""
    return resolve(name) if name in ALIASES else one_of("--engine", name, engine_names())


def task(about: str, more: Sequence[str] = ()) -> Any:
    """Return the option --task, which takes a task of the registry, or one of `more`."""
    return choice("--task", lambda: [*_tasks(), *more], group=INPUT, about=about)


def column(name: str, about: str) -> Any:
    """Return an option that takes the name of a column of a file."""
    return option(name, group=INPUT, about=about, metavar="<name>")


def gelu(group: str, about: str) -> Any:
    """Return the option --gelu."""
    return choice("--gelu", _gelu_forms, group=group, about=about)


def softmax(group: str, about: str) -> Any:
    """Return the option --softmax."""
    return choice("--softmax", _softmax_forms, group=group, about=about)


def engine(about: str) -> Any:
    """Return the option --engine. Its value is an engine's present name."""
    return choice("--engine", engine_names, group=PRIVACY, about=about, check=_engine)


def embeddings(about: str) -> Any:
    """Return the option --embeddings."""
    return choice("--embeddings", lambda: EMBEDDINGS, group=PRIVACY, about=about, show_default=False)
