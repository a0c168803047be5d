"""What a student is trained to match: its teacher's hidden states, attention scores and logits."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

Spans = Sequence[tuple[int, int]]


def state_loss(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Mean squared error of hidden states over real tokens, summed over the embeddings and the student's layers.

    Args:
        theirs, ours: outputs with hidden_states, (B, L, H) each.
        mask: (B, L).
        spans: by student layer: the teacher's layers that it stands for, first and one past the last.
    """
    ends = [0, *(last for _, last in spans)]
    pairs = zip([theirs.hidden_states[end] for end in ends], ours.hidden_states, strict=True)
    return _squared_error(pairs, mask.float()[:, :, None])


def score_loss(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans) -> torch.Tensor:
    """The same of raw attention scores, (B, A, L, L), over pairs of real tokens."""
    pairs = zip([theirs.attention_scores[first] for first, _ in spans], ours.attention_scores, strict=True)
    return _squared_error(pairs, (mask[:, None, :, None] * mask[:, None, None, :]).float())


def _squared_error(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], weight: torch.Tensor) -> torch.Tensor:
    loss = torch.zeros((), device=weight.device)
    for a, b in pairs:
        squared = (a.float() - b.float()) ** 2 * weight
        loss = loss + squared.sum() / (weight.sum() * (squared.numel() // weight.numel()))
    return loss


def logit_loss(theirs: torch.Tensor, ours: torch.Tensor, regression: bool) -> torch.Tensor:
    """Soft cross-entropy at temperature 1 of (B, C) logits, or mean squared error."""
    if regression:
        return F.mse_loss(ours.float(), theirs.float())
    return F.cross_entropy(ours.float(), theirs.float().softmax(-1))
