"""The student's configuration for transformers: that of a BERT, and the forms of GeLU, softmax and LayerNorm."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, BertConfig

from mpcformer.modeling.description import ModelDescription, check_variant, checked_head_size
from mpcformer.modeling.precision import WIDE


class MPCFormerConfig(BertConfig):  # type: ignore[misc]
    """BertConfig plus `gelu`, `softmax`, `task`, `constant_norms`, `head_size` and `precision`.

    Args:
        gelu, softmax: names of forms in `mpcformer.approximations`.
        task: the task that the student was distilled for.
        constant_norms: LayerNorms that divide by a learnt constant instead of each row's deviation, as `chosen_norms`
            takes them; they are kept by their full names.
        head_size: the size of each attention head; None stands for hidden_size / num_attention_heads, as in every BERT.
        precision: compact or wide, see `ModelDescription`.

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
        precision: str = WIDE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gelu, self.softmax, self.task, self.constant_norms = gelu, softmax, task, constant_norms
        self.precision = precision
        self.head_size = checked_head_size(self.hidden_size, self.num_attention_heads, head_size)
        check_variant(self.hidden_act, getattr(self, "position_embedding_type", None))
        settled = ModelDescription.of(self)
        self.gelu, self.softmax, self.constant_norms = settled.gelu, settled.softmax, list(settled.constant_norms)

    @property
    def attention_size(self) -> int:
        """The number of columns of the queries, the keys and the values each, with all heads side by side."""
        return int(self.num_attention_heads * self.head_size)


AutoConfig.register("mpcformer", MPCFormerConfig)
