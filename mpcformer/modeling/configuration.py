"""The student's configuration: that of a BERT, and the forms of GeLU, softmax and LayerNorm it was trained with."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, BertConfig

from mpcformer.approximations import gelu_form, softmax_form
from mpcformer.errors import UserInputError

NORM_PARTS = ("attention", "output")


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


def split_norms(listed: str) -> list[str]:
    """Return the names in a comma-separated list, as an option on the command line gives them."""
    return [name.strip() for name in listed.split(",") if name.strip()]


class MPCFormerConfig(BertConfig):  # type: ignore[misc]
    """BertConfig plus `gelu`, `softmax`, `task`, `constant_norms` and `head_size`.

    Args:
        gelu, softmax: names of forms in `mpcformer.approximations`.
        task: the task that the student was distilled for.
        constant_norms: LayerNorms that divide by a learnt constant instead of each row's deviation, as `chosen_norms`
            takes them; they are kept by their full names.
        head_size: the size of each attention head; None stands for hidden_size / num_attention_heads, as in every BERT.

    Raises:
        UserInputError: an unknown form or LayerNorm, an impossible size, or a BERT variant that the private model does
            not compute.
    """

    model_type = "mpcformer"

    def __init__(
        self,
        gelu: str = "quad",
        softmax: str = "2quad",
        task: str | None = None,
        constant_norms: Sequence[str] = (),
        head_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gelu = gelu_form(gelu).name
        self.softmax = softmax_form(softmax).name
        self.task = task
        self.constant_norms = chosen_norms(constant_norms, self.num_hidden_layers)
        if self.hidden_act != "gelu":
            raise UserInputError(
                f"hidden_act: {self.hidden_act!r} is not BERT's exact gelu", "use a checkpoint whose hidden_act is gelu"
            )
        positions = getattr(self, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise UserInputError(f"position_embedding_type: {positions!r} is not supported", "use absolute positions")
        heads = self.num_attention_heads
        if heads <= 0:
            raise UserInputError(f"num_attention_heads: {heads!r} is no positive integer", "correct config.json")
        if head_size is None and self.hidden_size % heads:
            raise UserInputError(
                f"num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size})",
                "correct config.json, or give head_size",
            )
        if head_size is not None and not (type(head_size) is int and head_size > 0):  # a bool is an int
            raise UserInputError(f"head_size: {head_size!r} is no positive integer", "correct config.json")
        self.head_size = head_size or self.hidden_size // heads

    @property
    def attention_size(self) -> int:
        """The number of columns of the queries, the keys and the values each, with all heads side by side."""
        return int(self.num_attention_heads * self.head_size)


AutoConfig.register("mpcformer", MPCFormerConfig)
