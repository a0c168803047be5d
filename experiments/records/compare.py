"""Compare a new run with a recorded one, number by number, within the experiment's tolerances."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.spec.outputs import Tolerances
from experiments.spec.quantities import QUANTITIES, Row
from experiments.spec.scales import CountedSpec, ModelSpec
from experiments.spec.spec import CountsExperiment, Experiment, Scale, models_of
from mpcformer.console import PlainTable, console
from mpcformer.errors import MPCFormerError, UserInputError


def check_settings(recorded: dict[str, Any], spec: Experiment, scale: Scale, path: Path) -> None:
    """Refuse a record that was made with another scale section or other models than the scale has now.

    Tables, figures, descriptions, tolerances, the other scales and the models that only they make may differ. A setting
    that the record lacks, because it was introduced later, counts as its default.

    Raises:
        UserInputError: settings differ; the error lists them.
    """
    now = settings_of(scale, models_of(spec))
    try:
        made = CountedSpec if isinstance(spec, CountsExperiment) else ModelSpec
        models = [made.model_validate(model) for model in recorded.get("models", models_of(spec))]
        before_scale = type(scale).model_validate(recorded["settings"])
    except (KeyError, ValidationError):
        other = ["keys that this version does not know"]
    else:
        before = settings_of(before_scale, [model.model_dump(mode="json") for model in models])
        keys = dict.fromkeys([*now, *before])
        other = [f"{key} {before.get(key)}, not {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    if other:
        raise UserInputError(
            f"--check: {path} was made with other settings: {'; '.join(other)}",
            "make the record anew with --record, or give one of these settings",
        )


def settings_of(scale: Scale, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of a scale as JSON, with those of an experiment's models that the scale makes."""
    settings = scale.model_dump(mode="json")
    chosen = settings.get("models")
    return settings | {"models": [model for model in models if chosen is None or model["name"] in chosen]}


def differences(
    recorded: dict[str, Any], new: dict[str, Any], tolerances: Tolerances
) -> list[tuple[str, str, str, str]]:
    """Return (row, quantity, recorded, new) for each number that differs and each row or number that one run lacks."""
    before, after = ({row.identity: row for row in map(Row.from_json, values["rows"])} for values in (recorded, new))
    found: list[tuple[str, str, str, str]] = []
    for key in dict.fromkeys([*before, *after]):
        old, now = before.get(key), after.get(key)
        if old is None or now is None:
            row = old or now
            assert row is not None
            found.append((row.name, "the row", *(("there", "missing") if old else ("missing", "there"))))
            continue
        for name in dict.fromkeys([*old.values, *now.values]):
            a, b = old.values.get(name), now.values.get(name)
            if a is None or b is None:
                found.append((old.name, name, str(a), str(b)))
            elif name not in QUANTITIES or not tolerances.allow(QUANTITIES[name].kind, a, b):
                found.append((old.name, name, f"{a:.8g}", f"{b:.8g}"))
    return found


def check(recorded: dict[str, Any], new: dict[str, Any], tolerances: Tolerances, path: Path) -> None:
    """Print that two runs agree, or a table of their differences.

    Raises:
        MPCFormerError: the runs differ.
    """
    found = differences(recorded, new, tolerances)
    n_numbers = sum(len(row["values"]) for row in recorded["rows"])
    if not found:
        console.print(
            f"as recorded in {path}: {len(recorded['rows'])} rows, {n_numbers} numbers, within the tolerances"
        )
        return
    grid = PlainTable(f"Differences from {path}", "row", "number", "recorded", "this run", n_left=2)
    for line in found:
        grid.add_row(*line)
    console.print(grid)
    first = "; ".join(f"{line[0]}: {line[1]}" for line in found[:4])
    rows = len({line[0] for line in found})
    raise MPCFormerError(
        f"{rows} of {len(recorded['rows'])} rows differ from {path}: {first}{' ...' if len(found) > 4 else ''}",
        f"compare the versions of both runs; the tolerances are in the experiment's TOML: {tolerances.model_dump()}",
    )
