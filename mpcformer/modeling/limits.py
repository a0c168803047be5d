"""Plain limits on what a config.json may say, checked before anything is made of it. Nothing here loads torch."""

import re
from collections.abc import Mapping
from typing import Any

from mpcformer.errors import UserInputError
from mpcformer.files import read_json

# The most of each; every published BERT has less.
MOST = {
    "vocab_size": 1 << 20,
    "type_vocab_size": 1 << 10,
    "hidden_size": 1 << 14,
    "num_hidden_layers": 256,
    "num_attention_heads": 1 << 10,
    "intermediate_size": 1 << 16,
    "max_position_embeddings": 1 << 16,
    "head_size": 1 << 12,
    "embedding_size": 1 << 14,
}
# The numbers of a sentence's embedding count as classes.
MOST_CLASSES, LONGEST_NAME, MOST_BUCKETS = 1 << 13, 200, 1 << 12
TEXTS = (
    "model_type",
    "gelu",
    "softmax",
    "task",
    "precision",
    "pooling",
    "head_activation",
    "hidden_act",
    "position_embedding_type",
)
# Numbers from 0 to 1, by the names of all families.
FRACTIONS = (
    "layer_norm_eps",
    "layer_norm_epsilon",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "classifier_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "initializer_range",
)
# The names of classes are the model owner's, and stand in the data owner's tables beside its texts.
FORMULA = re.compile(r"[=+\-@\t\r]")
MEND = "correct config.json"


def read_object(path: Any) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserInputError: the file is missing, is not JSON, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserInputError(f"{path} holds no JSON object but a {type(value).__name__}", "restore the file")
    return value


def check_size(name: str, value: Any) -> None:
    """Refuse a size that is no positive integer, or above its limit.

    Raises:
        UserInputError: it is refused.
    """
    if type(value) is not int or value <= 0:  # a bool is an int
        raise UserInputError(f"{name}: {_shown(value)} is no positive integer", MEND)
    if value > MOST[name]:
        raise UserInputError(f"{name}: {_shown(value)} is above {MOST[name]}", MEND)


def check_fields(config: Mapping[str, Any]) -> None:
    """Check the type and the size of every field that this project reads in a config.json.

    Raises:
        UserInputError: a field is wrong; the error names it.
    """
    for name in MOST:
        if config.get(name) is not None:
            check_size(name, config[name])
    for name in TEXTS:
        value = config.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= LONGEST_NAME):
            raise UserInputError(f"{name}: {_shown(value)} is no name", MEND)
    buckets = config.get("score_buckets")
    if buckets is not None and not (type(buckets) is int and 0 <= buckets <= MOST_BUCKETS):
        raise UserInputError(f"score_buckets: {_shown(buckets)} is outside 0..{MOST_BUCKETS}", MEND)
    for name in FRACTIONS:
        value = config.get(name)
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
            raise UserInputError(f"{name}: {_shown(value)} is no number from 0 to 1", MEND)
    n_words, pad = config.get("vocab_size"), config.get("pad_token_id")
    if pad is not None and not (type(pad) is int and 0 <= pad < (n_words or MOST["vocab_size"])):
        raise UserInputError(f"pad_token_id: {_shown(pad)} is none of the {_shown(n_words)} words", MEND)
    _check_classes(config.get("id2label"), config.get("num_labels"))


def _check_classes(named: Any, n: Any) -> None:
    """Check the names of the classes, or their number."""
    if n is not None and not (type(n) is int and 1 <= n <= MOST_CLASSES):
        raise UserInputError(f"num_labels: {_shown(n)} is outside 1..{MOST_CLASSES}", MEND)
    if named is None:
        return
    if not isinstance(named, dict) or len(named) > MOST_CLASSES:
        raise UserInputError(f"id2label: {_shown(named)} is no object of at most {MOST_CLASSES} names", MEND)
    if named and {str(index) for index in named} != {str(i) for i in range(len(named))}:
        raise UserInputError("id2label: the classes are not numbered 0, 1, and so on", MEND)
    for name in named.values():
        if not isinstance(name, str | int | float) or len(str(name)) > LONGEST_NAME:
            raise UserInputError(f"id2label: {_shown(name)} is no name of a class", MEND)
        if FORMULA.match(str(name)) and not _is_number(name):
            raise UserInputError(
                f"id2label: {_shown(name)} begins as a formula does, which a table program would compute",
                "give the class another name",
            )


def _is_number(name: object) -> bool:
    try:
        float(str(name))
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    """Return a value as an error quotes it, cut short; numbers may be too long for Python to write them."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
