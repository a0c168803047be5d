"""The student's configuration: BERT's, with the forms of GeLU and softmax it was trained with."""

from typing import Any

from transformers import AutoConfig, BertConfig

from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.errors import UserInputError


class MPCFormerConfig(BertConfig):  # type: ignore[misc]
    """BertConfig plus `gelu`, `softmax` and `task`.

    Raises:
        UserInputError: an unknown form, or a BERT variant that the private model does not compute.
    """

    model_type = "mpcformer"

    def __init__(self, gelu: str = "quad", softmax: str = "2quad", task: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gelu = gelu
        self.softmax = softmax
        self.task = task
        for option, value, known in (("gelu", gelu, GELU_FORMS), ("softmax", softmax, SOFTMAX_FORMS)):
            if value not in known:
                raise UserInputError(f"{option}: form {value!r} is unknown", f"choose one of: {', '.join(known)}")
        if self.hidden_act != "gelu":
            raise UserInputError(
                f"hidden_act: {self.hidden_act!r} is not BERT's exact gelu", "use a checkpoint whose hidden_act is gelu"
            )
        positions = getattr(self, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            raise UserInputError(f"position_embedding_type: {positions!r} is not supported", "use absolute positions")
        if self.hidden_size % self.num_attention_heads:
            raise UserInputError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})",
                "correct config.json",
            )


AutoConfig.register("mpcformer", MPCFormerConfig)
