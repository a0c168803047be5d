"""What is public of a model: its sizes, its forms and its classes, as config.json states them.

The parties read it from the file. transformers' own configuration class, which `mpcformer.modeling.configuration`
extends, is for those who train, and takes seconds to import.
"""

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.errors import UserInputError
from mpcformer.modeling.families import family_of
from mpcformer.modeling.limits import check_fields, check_size
from mpcformer.modeling.precision import COMPACT, PRECISIONS, WIDE

NORM_PARTS = ("attention", "output")
SIZES = (
    "vocab_size",
    "type_vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# Which rows of the last layer the head takes, and what stands behind its dense layer; none means no dense layer.
POOLINGS = ("first", "mean", "each")
HEAD_ACTIVATIONS = ("tanh", "relu", "gelu", "none")
OUTPUTS = ("logits", "embedding")
# The largest number of positions of which a layer may keep one.
MOST_STRIDE = 64


def norm_names(n_layers: int) -> list[str]:
    """Return the names of all LayerNorms in order: embeddings, and for layer N layer.N.attention and layer.N.output."""
    return ["embeddings", *(f"layer.{n}.{part}" for n in range(n_layers) for part in NORM_PARTS)]


def chosen_norms(asked: Sequence[str], n_layers: int) -> list[str]:
    """Return the LayerNorms that were asked for, as `norm_names` names and orders them.

    Args:
        asked: names of LayerNorms; `attention` and `output` stand for those of every layer, `all` for all.
        n_layers: the number of encoder layers.

    Raises:
        UserInputError: `asked` is not a list of names, or a name is unknown.
    """
    if not isinstance(asked, list | tuple) or not all(isinstance(name, str) for name in asked):
        raise UserInputError(
            f"constant_norms: {asked!r} is no list of LayerNorms' names", 'give a list such as ["attention"], or []'
        )
    names = norm_names(n_layers)
    groups = {part: [name for name in names if name.endswith(f".{part}")] for part in NORM_PARTS} | {"all": names}
    chosen: set[str] = set()
    for name in asked:
        if name not in groups and name not in names:
            raise UserInputError(
                f"constant_norms: {name!r} is no LayerNorm of a model of {n_layers} layers",
                f"choose from: {', '.join(names[:3])} and so on, or attention, output, all",
            )
        chosen |= set(groups.get(name, [name]))
    return [name for name in names if name in chosen]


def checked_strides(strides: Sequence[int], n_layers: int, n_positions: int, pooling: str) -> list[int]:
    """Return the strides of a model's layers as a list, which is empty if every layer keeps all of its positions.

    Args:
        strides: as `ModelDescription` takes them.
        n_layers: the number of encoder layers.
        n_positions: the number of positions of the longest text.
        pooling: which rows the head takes.

    Raises:
        UserInputError: `strides` is not one positive integer for each layer, they drop more positions than any text
            has, or the head needs every position.
    """
    if not isinstance(strides, list | tuple) or not all(type(n) is int and 1 <= n <= MOST_STRIDE for n in strides):
        raise UserInputError(
            f"strides: {strides!r} is no list of integers from 1 to {MOST_STRIDE}", "give a list such as [1, 2, 1]"
        )
    if strides and len(strides) != n_layers:
        raise UserInputError(
            f"strides: {len(strides)} numbers for a model of {n_layers} layers", "give one number for each layer"
        )
    if math.prod(strides) > n_positions:
        raise UserInputError(
            f"strides: {list(strides)} keep one of {math.prod(strides)} positions, and no text has more than"
            f" {n_positions}",
            "give smaller numbers",
        )
    if all(stride == 1 for stride in strides):
        return []
    if pooling == "each":
        raise UserInputError(
            f"strides: {list(strides)} drop positions, and the head gives an answer for each", "leave strides out"
        )
    return list(strides)


def split_norms(listed: str) -> list[str]:
    """Return the names in a comma-separated list, as an option on the command line gives them."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def split_strides(listed: str) -> tuple[int, ...]:
    """Return the numbers in a comma-separated list, as an option on the command line gives them.

    Raises:
        UserInputError: one of them is no integer.
    """
    try:
        return tuple(int(number) for number in listed.split(",")) if listed.strip() else ()
    except ValueError:
        raise UserInputError(f"--strides: {listed!r} is no list of integers", "give one such as 1,2,1,1") from None


def checked_head_size(hidden_size: int, n_heads: int, head_size: int | None) -> int:
    """Return the size of each attention head; None stands for hidden_size / n_heads, as in every BERT.

    Raises:
        UserInputError: a size is impossible.
    """
    if n_heads <= 0:
        raise UserInputError(f"num_attention_heads: {n_heads!r} is no positive integer", "correct config.json")
    if head_size is None and hidden_size % n_heads:
        raise UserInputError(
            f"num_attention_heads ({n_heads}) must divide hidden_size ({hidden_size})",
            "correct config.json, or give head_size",
        )
    if head_size is not None and not (type(head_size) is int and head_size > 0):  # a bool is an int
        raise UserInputError(f"head_size: {head_size!r} is no positive integer", "correct config.json")
    return head_size or hidden_size // n_heads


def check_precision(
    precision: str, gelu: str, softmax: str, constant_norms: Sequence[str], *, projection: bool = False
) -> None:
    """Refuse a precision that is unknown, or that does not carry a model's forms.

    Raises:
        UserInputError: it is refused; the error names it.
    """
    if precision not in PRECISIONS:
        raise UserInputError(f"precision: {precision!r} is unknown", f"choose one of: {', '.join(PRECISIONS)}")
    if precision == COMPACT and projection:
        raise UserInputError(
            "precision: compact does not carry a map between the embeddings and the layers", "use the precision wide"
        )
    if precision == COMPACT and not carries_compact(gelu, softmax, constant_norms):
        raise UserInputError(
            f"precision: compact carries quad with 2quad and no constant LayerNorms, not {gelu} with {softmax}",
            "use the precision wide",
        )


def carries_compact(gelu: str, softmax: str, constant_norms: Sequence[str]) -> bool:
    """Return whether the compact precision carries these forms."""
    return (gelu_form(gelu).name, softmax_form(softmax).name, list(constant_norms)) == ("quad", "2quad", [])


def two_classes() -> dict[int, str]:
    """Return the names that transformers gives the classes of a model whose configuration names none."""
    return {0: "LABEL_0", 1: "LABEL_1"}


@dataclass(frozen=True)
class ModelDescription:
    """An encoder: its sizes, what tells its family from a BERT, its forms, and its head.

    The defaults are those of BERT's configuration, which files leave out.

    Args:
        vocab_size, type_vocab_size, max_position_embeddings: rows of the embedding tables.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        head_size: the size of each attention head; None stands for hidden_size / num_attention_heads.
        embedding_size: the width of the embedding tables and their LayerNorm; None stands for hidden_size.
        projection: whether a linear map stands between that LayerNorm and the layers; None: if the widths differ.
        score_buckets: into how many groups of distances a learnt bias on the scores is divided; 0 means no such bias.
        pooling: which rows of the last layer the head takes: the first, the mean of all, or each by itself.
        head_activation: what stands behind the head's dense layer; none means that the head has no dense layer.
        output: what the classifier gives: logits, or the embedding of a sentence, which its receiver brings to length
            one.
        layer_norm_eps: what LayerNorm adds to the variance.
        gelu, softmax: names of forms in `mpcformer.approximations`.
        constant_norms: LayerNorms that divide by a learnt constant, as `chosen_norms` takes them.
        task: the task that the student was distilled for.
        id2label: the names of the classes by the index of their logit.
        precision: compact or wide: the rings in which the engine `lift` computes. Files of older releases name none.
        strides: for each layer, of how many of its positions it keeps one, from the first on. Attention still reads all
            of them, but only the kept ones ask, and go on. Empty: every layer keeps all.

    Raises:
        UserInputError: an unknown form or LayerNorm, or an impossible size.
    """

    vocab_size: int = 30522
    type_vocab_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    head_size: int = None  # type: ignore[assignment] # settled below
    embedding_size: int = None  # type: ignore[assignment] # settled below
    projection: bool = None  # type: ignore[assignment] # settled below
    score_buckets: int = 0
    pooling: str = "first"
    head_activation: str = "tanh"
    output: str = "logits"
    layer_norm_eps: float = 1e-12
    gelu: str = "quad"
    softmax: str = "2quad"
    constant_norms: Sequence[str] = ()
    task: str | None = None
    id2label: Mapping[int, str] = field(default_factory=two_classes)
    precision: str = WIDE
    strides: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in SIZES:
            check_size(name, getattr(self, name))
        head_size = checked_head_size(self.hidden_size, self.num_attention_heads, self.head_size)
        self._check_family()
        width = self.embedding_size or self.hidden_size
        settled = {
            "embedding_size": width,
            "projection": width != self.hidden_size if self.projection is None else self.projection,
            "gelu": gelu_form(self.gelu).name,
            "softmax": softmax_form(self.softmax).name,
            "constant_norms": chosen_norms(self.constant_norms, self.num_hidden_layers),
            "head_size": head_size,
            "strides": checked_strides(
                self.strides, self.num_hidden_layers, self.max_position_embeddings, self.pooling
            ),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        check_precision(self.precision, self.gelu, self.softmax, self.constant_norms, projection=self.projection)

    def _check_family(self) -> None:
        """Check what tells one family from another.

        Raises:
            UserInputError: a value is impossible.
        """
        for name, least in (("embedding_size", 1), ("score_buckets", 0)):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= least):
                raise UserInputError(f"{name}: {value!r} is no integer from {least} up", "correct config.json")
        if self.pooling != "first" and self.has_dense:
            raise UserInputError(
                f"pooling: {self.pooling} with a dense layer in the head is not supported",
                "use pooling first, or head_activation none",
            )
        differ = self.embedding_size not in (None, self.hidden_size)
        if self.projection not in (None, True, False) or (differ and self.projection is False):
            raise UserInputError(
                f"projection: {self.projection!r} does not fit embeddings of {self.embedding_size} for layers of"
                f" {self.hidden_size}",
                "correct config.json",
            )
        if self.score_buckets % 4:
            raise UserInputError(f"score_buckets: {self.score_buckets} is no multiple of 4", "correct config.json")
        for name, known in (("pooling", POOLINGS), ("head_activation", HEAD_ACTIVATIONS), ("output", OUTPUTS)):
            if getattr(self, name) not in known:
                raise UserInputError(
                    f"{name}: {getattr(self, name)!r} is unknown", f"choose one of: {', '.join(known)}"
                )

    @classmethod
    def of(cls, config: Any) -> "ModelDescription":
        """Describe the model of a transformers configuration that has our forms."""
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls)})

    def norm_width(self, name: str) -> int:
        """Return the length of the rows of a LayerNorm of `norm_names`."""
        return self.embedding_size if name == "embeddings" else self.hidden_size

    @property
    def steps(self) -> list[tuple[int, int]]:
        """How far apart in the text the positions are that each layer gets, and those that it keeps."""
        strides = self.strides or [1] * self.num_hidden_layers
        kept = list(itertools.accumulate(strides, operator.mul, initial=1))
        return list(itertools.pairwise(kept))

    @property
    def has_dense(self) -> bool:
        """Whether the head has a dense layer before the classifier."""
        return self.head_activation != "none"

    @property
    def num_labels(self) -> int:
        """The number of logits."""
        return len(self.id2label)

    @property
    def attention_size(self) -> int:
        """The number of columns of the queries, the keys and the values each, with all heads side by side."""
        return self.num_attention_heads * self.head_size


def described(config: Mapping[str, Any], where: str = "config.json") -> ModelDescription:
    """Describe the model of a config.json of any family. A model that is no student has its own forms.

    Args:
        config: the content of the file.
        where: the checkpoint, for errors.

    Raises:
        UserInputError: an unknown form or LayerNorm, an impossible size, or a family or variant that the private model
            does not compute.
    """
    check_fields(config)
    own = family_of(config, where).described(config)
    names = {each.name for each in fields(ModelDescription)} - {"id2label"}
    known = {name: value for name, value in own.items() if name in names}
    labels = own.get("id2label") or {}
    if not labels and "num_labels" in own:
        labels = {i: f"LABEL_{i}" for i in range(int(own["num_labels"]))}
    return ModelDescription(**known, id2label={int(i): str(name) for i, name in labels.items()} or two_classes())
