"""The student as a Hugging Face model: an encoder with a head, and with exchangeable GeLU, softmax and LayerNorm.

Its modules are in `mpcformer.modeling.encoder`. With a family's own activation and softmax, the logits are those of
transformers' class. Attention scores are returned raw, because distillation needs them. An `observer` sees the input of
every non-linearity that is private later.

Letters in the shapes beside the code: B sentences, L positions, C outputs, H hidden, A heads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from mpcformer.modeling.configuration import MPCFormerConfig
from mpcformer.modeling.encoder import Bert, Context, Observer


@dataclass
class StudentOutput(ModelOutput):  # type: ignore[misc]
    """The output of a student.

    Args:
        loss: a number, if labels were given.
        logits: (B, C), or (B, L, C) if the head takes each row by itself.
        hidden_states: those of the embeddings and of each layer, (B, L, H), if asked for.
        attention_scores: the raw scores of each layer, (B, A, L, L), if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attention_scores: tuple[torch.Tensor, ...] | None = None


class MPCFormerForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """The student, which is trained in plaintext and defines what the private engines compute."""

    config_class = MPCFormerConfig
    base_model_prefix = "bert"

    def __init__(self, config: MPCFormerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = Bert(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.observer: Observer | None = None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attention_scores: bool = False,
        **_: Any,
    ) -> StudentOutput:
        """Classify texts, or their tokens.

        Args:
            input_ids: int64 (B, L).
            attention_mask: (B, L) of 0 and 1; None stands for ones.
            token_type_ids: int64 (B, L); None stands for zeros.
            labels: (B,), int64 classes or float values; without them there is no loss.
            output_hidden_states, output_attention_scores: what else to return.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        context = Context(mask[:, None, None, :].to(self.classifier.weight.dtype), self.observer, [])
        pooled, hidden = self.bert(input_ids, types, context)
        logits = self.classifier(self.dropout(pooled))
        context.observe("logits", logits, "tokens" if self.bert.pooling == "each" else "sentences")
        loss = None
        if labels is not None:
            regression = self.num_labels == 1
            loss = F.mse_loss(logits[:, 0], labels.to(logits)) if regression else F.cross_entropy(logits, labels)
        return StudentOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            attention_scores=tuple(context.scores) if output_attention_scores else None,
        )


AutoModelForSequenceClassification.register(MPCFormerConfig, MPCFormerForSequenceClassification)
