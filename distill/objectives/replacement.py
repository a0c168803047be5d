"""Gradual replacement: a forward pass through a mixture of the teacher's and the student's layers.

Each layer of the student replaces the teacher's layers that it stands for with a probability that rises from FIRST to 1
during the stage. Otherwise the teacher's layers run; their weights do not change. Embeddings, pooler and head are the
student's.
Source: Xu et al., BERT-of-Theseus, EMNLP 2020. As there, the student is trained alone afterwards; this is our stage 2.
"""

from collections.abc import Mapping

import torch

from distill.start.spans import Spans
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.encoder import Context
from mpcformer.modeling.model import StudentOutput

# The probability of a replacement when the stage begins.
FIRST = 0.3


def mixed_forward(
    teacher: MPCFormerForSequenceClassification,
    student: MPCFormerForSequenceClassification,
    inputs: Mapping[str, torch.Tensor],
    spans: Spans,
    *,
    progress: float,
    seed: int,
) -> tuple[torch.Tensor, StudentOutput]:
    """Run the mixture.

    Args:
        teacher: in evaluation mode.
        student: in evaluation mode.
        inputs: input_ids, attention_mask and token_type_ids, (B, L) each.
        spans: the teacher's layers that each student layer stands for, see `Spans`.
        progress: the fraction of the stage that is done, 0..1.
        seed: determines which layers are replaced.

    Returns:
        The mixture's logits, (B, C), and an output with the raw attention scores of the student's layers that ran.
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
    return student.classifier(student.bert.pool(x, context)), StudentOutput(attention_scores=tuple(context.scores))
