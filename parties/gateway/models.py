"""Which models a gateway serves, under which names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from parties.ask.local import connect, local
from parties.ask.models import load_asking, models
from parties.gateway.served import ServedModel, check_name

# By the name in addresses: the model's name at the model owner, or None where it needs none.
Chosen = Mapping[str, str | None]


def chosen(config: Path | None, wanted: list[str] | None, name: str | None, student: Path | None) -> Chosen:
    """Return the models to serve.

    Args:
        config: the data owner's file; None stands for a student on this machine.
        wanted: the names of some of its models; None stands for all in the file.
        name: the name of the only model in addresses.
        student: the folder of the student on this machine; None stands for the one of the package.

    Raises:
        UserInputError: the file is wrong, a model is not in it, or `name` is given for several.
    """
    if config is None:
        from mpcformer.modeling.folder import first_student

        return {check_name(name or (student or first_student()).resolve().name): None}
    loaded = load_asking(config)
    # A file with public_model alone names at most one.
    names: Sequence[str | None] = wanted or [entry.name for entry in loaded.models] or [loaded.model]
    picked = {each: loaded.picked(each).folder_of_model() for each in names}
    if len(picked) > 1:
        if name is not None:
            raise UserInputError(
                "--name: there are several models, each with its name", "leave it out, or give one --model"
            )
        return {str(each): each for each in picked}
    ((only, folder),) = picked.items()
    return {check_name(name or only or folder.resolve().name): only}


@contextmanager
def opened(
    models_: Chosen, config: Path | None, student: Path | None, given: Mapping[str, Any]
) -> Iterator[list[ServedModel]]:
    """Yield what is served, and close its sessions at the end.

    One model has its session from the start. Several have theirs from their first questions: each takes up a place at
    dealer and model owner. The model owner is asked at the start whether it lets this data owner ask them.

    Args:
        models_: from `chosen`.
        config, student: as for `chosen`.
        given: further arguments of `connect` or `local`.

    Raises:
        MPCFormerError: a party does not answer, or refuses.
    """
    with ExitStack() as stack:
        if config is not None and len(models_) > 1:
            _check_offered(config, models_, given["patience_s"])
        served = []
        for name, model in models_.items():
            classify = local(student, **given) if config is None else connect(config, model=model, **given)
            stack.callback(classify.close)
            if len(models_) == 1:
                classify.open()
            served.append(ServedModel(name, classify, config is None, given["max_length"]))
        yield served


def _check_offered(config: Path, wanted: Chosen, patience_s: float) -> None:
    offered = [each["name"] for each in models(config, patience_s=patience_s)]
    if missing := [name for name in wanted if name not in offered]:
        raise UserInputError(
            f"--config: the model owner lets this data owner ask no {missing[0]!r}",
            "mpcformer ask --list-models --config FILE lists what may be asked; serve these by --model",
        )
