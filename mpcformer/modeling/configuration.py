"""The student's configuration for transformers: that of a BERT, what other families have beside it, and the forms."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, BertConfig

from mpcformer.modeling.description import ModelDescription, checked_head_size
from mpcformer.modeling.precision import WIDE


class MPCFormerConfig(BertConfig):  # type: ignore[misc]
    """BertConfig plus the fields of `ModelDescription` that a BERT has not.

    Args:
        gelu, softmax: names of forms in `mpcformer.approximations`.
        task: the task that the student was distilled for.
        constant_norms: LayerNorms that divide by a learnt constant instead of each row's deviation, as `chosen_norms`
            takes them; they are kept by their full names.
        head_size: the size of each attention head; None stands for hidden_size / num_attention_heads, as in every BERT.
        precision, embedding_size, projection, score_buckets, pooling, head_activation, output, strides: see
            `ModelDescription`.

    Raises:
        UserInputError: an unknown form or LayerNorm, an impossible size, or a variant that the private model does not
            compute.
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
        embedding_size: int | None = None,
        projection: bool | None = None,
        score_buckets: int = 0,
        pooling: str = "first",
        head_activation: str = "tanh",
        output: str = "logits",
        strides: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gelu, self.softmax, self.task, self.constant_norms = gelu, softmax, task, constant_norms
        self.precision, self.score_buckets = precision, score_buckets
        self.pooling, self.head_activation, self.output = pooling, head_activation, output
        self.embedding_size = self.hidden_size if embedding_size is None else embedding_size
        self.projection, self.strides = projection, strides
        self.head_size = checked_head_size(self.hidden_size, self.num_attention_heads, head_size)
        settled = ModelDescription.of(self)
        self.gelu, self.softmax, self.constant_norms = settled.gelu, settled.softmax, list(settled.constant_norms)
        self.projection, self.strides = settled.projection, list(settled.strides)

    @property
    def attention_size(self) -> int:
        """The number of columns of the queries, the keys and the values each, with all heads side by side."""
        return int(self.num_attention_heads * self.head_size)

    @property
    def has_dense(self) -> bool:
        """Whether the head has a dense layer before the classifier."""
        return ModelDescription.of(self).has_dense

    @property
    def steps(self) -> list[tuple[int, int]]:
        """How far apart in the text the positions are that each layer gets, and those that it keeps."""
        return ModelDescription.of(self).steps

    def norm_width(self, name: str) -> int:
        """Return the length of the rows of a LayerNorm of `norm_names`."""
        return ModelDescription.of(self).norm_width(name)


AutoConfig.register("mpcformer", MPCFormerConfig)
