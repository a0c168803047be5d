"""Gradual replacement: a forward pass in which student's layers stand in for the teacher's, more and more of them.

Each layer of the student replaces the teacher's that it stands for with a probability that rises from FIRST to one over
the stage; elsewhere the teacher's run, whose weights stay. Embeddings, pooler and head are the student's.
Source: Xu et al., BERT-of-Theseus, EMNLP 2020; after it the student is trained alone, which is our stage 2.
"""

from collections.abc import Mapping, Sequence

import torch

from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.model import Context, StudentOutput

FIRST = 0.3


def mixed_forward(
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    inputs: Mapping[str, torch.Tensor],
    spans: Sequence[tuple[int, int]],
    *,
    progress: float,
    seed: int,
) -> tuple[torch.Tensor, StudentOutput]:
    """Logits (B, C) of the mixture, and the raw attention scores of those of the student's layers that took part.

    Args:
        teacher, student: in evaluation mode.
        inputs: input_ids, attention_mask, token_type_ids, (B, L) each.
        spans: by student layer: the teacher's layers that it stands for, first and one past the last.
        progress: of the stage, 0..1.
        seed: decides which layers are replaced.
    """
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.rand(len(spans), generator=generator) < FIRST + (1 - FIRST) * progress
    keys = inputs["attention_mask"][:, None, None, :].to(student.classifier.weight.dtype)
    context, unseen = Context(keys, None, []), Context(keys, None, [])
    x = student.bert.embeddings(inputs["input_ids"], inputs["token_type_ids"], context)
    for layer, own, (first, last) in zip(student.bert.layers, replaced.tolist(), spans, strict=True):
        if own:
            x = layer(x, context, "")
        else:
            for theirs in teacher.bert.layers[first:last]:
                x = theirs(x, unseen, "")
    pooled = torch.tanh(student.bert.pooler["dense"](x[:, 0]))
    return student.classifier(pooled), StudentOutput(attention_scores=tuple(context.scores))
