"""Read a recorded results.json."""

from pathlib import Path
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import read_json


def load_recorded(path: Path, experiment: str, scale: str, *, option: str = "--check") -> dict[str, Any]:
    """Return the values of a recorded results.json.

    Args:
        path: the file.
        experiment, scale: what the record must belong to.
        option: the command-line option that named the file, for the errors.

    Raises:
        UserInputError: the file is missing, holds no results, or belongs to another experiment or scale.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not {"experiment", "scale", "rows"} <= set(values):
        raise UserInputError(f"{option}: {path} holds no results of an experiment", "give a results.json of a replay")
    if (values["experiment"], values["scale"]) != (experiment, scale):
        belongs = f"{path} belongs to {values['experiment']} at scale {values['scale']}"
        raise UserInputError(
            f"{option}: {belongs}, not {experiment} at {scale}", "give a record of this experiment and scale"
        )
    return dict(values)
