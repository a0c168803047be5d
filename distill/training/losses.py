"""What a student is trained to match: its teacher's hidden states, attention scores and logits."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from mpcformer.approximations import QUAD_SHIFT

Spans = Sequence[tuple[int, int]]
# Where rows' means of (s + 5)^2 may lie for nothing: a private reciprocal's tables grow with the ratio.
ROW_MEANS = (4.0, 100.0)
# Below this a probability counts as this much.
LEAST = 1e-6
# Of Sinkhorn's transport.
TEMPERATURE = 0.1
ITERATIONS = 20


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


def row_loss(ours: Any, mask: torch.Tensor, shift: float = QUAD_SHIFT) -> torch.Tensor:
    """How far rows' means of (s + 5)^2 lie outside ROW_MEANS: squared logarithm, mean over rows, summed over layers.

    Keeps the calibrated ranges of 2Quad narrow, without which no table of a private reciprocal holds them.

    Args:
        ours: output with attention_scores, (B, A, L, L) each.
        mask: (B, L).
        shift: `square_shift` of the student's form of softmax: 5 in (s + 5)^2.
    """
    keys = mask[:, None, None, :].float()
    rows = mask[:, None, :].float()  # (B, 1, L)
    least, most = (math.log(bound) for bound in ROW_MEANS)
    loss = torch.zeros((), device=mask.device)
    for scores in ours.attention_scores:
        mean = (keys * (scores.float() + shift) ** 2).sum(-1) / keys.sum(-1)  # (B, A, L)
        log = mean.clamp(min=1e-6).log()
        outside = F.relu(least - log).square() + F.relu(log - most).square()
        loss = loss + (outside * rows).sum() / (rows.sum() * scores.size(1))
    return loss


def direction_loss(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans) -> torch.Tensor:
    """One minus the cosine of hidden states, mean over real tokens, summed over embeddings and the student's layers.

    Args:
        theirs, ours: outputs with hidden_states, (B, L, H) each.
        mask: (B, L).
        spans: as for `state_loss`.

    Source: Sanh et al., DistilBERT, 2019.
    """
    weight = mask.float()
    loss = torch.zeros((), device=mask.device)
    for end, state in zip([0, *(last for _, last in spans)], ours.hidden_states, strict=True):
        cosine = F.cosine_similarity(theirs.hidden_states[end].float(), state.float(), dim=-1)
        loss = loss + ((1 - cosine) * weight).sum() / weight.sum()
    return loss


def probability_loss(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Divergence of attention probabilities from the teacher's, mean over real queries and heads, summed over layers.

    sum_j t_j log(t_j / p_j) - t_j + p_j, which is Kullback and Leibler's where rows add up to one, and also zero only
    for equals where, as with 2quad-const, they need not.

    Args:
        theirs, ours: per layer of the student, (B, A, L, L).
        mask: (B, L).

    Source: Wang et al., MiniLM, NeurIPS 2020.
    """
    keys, queries = mask[:, None, None, :].float(), mask[:, None, :].float()
    loss = torch.zeros((), device=mask.device)
    for t, p in zip(theirs, ours, strict=True):
        t, p = t.float().clamp(min=LEAST), p.float().clamp(min=LEAST)
        rows = ((t * (t / p).log() - t + p) * keys).sum(-1)  # (B, A, L)
        loss = loss + (rows * queries).sum() / (queries.sum() * rows.size(1))
    return loss


def sinkhorn_loss(theirs: torch.Tensor, ours: torch.Tensor, regression: bool) -> torch.Tensor:
    """Distance between two batches of logits (B, C) as sets: the mean cost of the entropic transport between them.

    A row's cost to another is the L1 distance of their classes' probabilities, or of the values of a regression. It
    compares every row with every other, so shares of a batch do not add up to the batch's.

    Source: Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation, COLING 2024, with its temperature 0.1
    and 20 iterations.
    """
    t, s = (x.float() if regression else x.float().softmax(-1) for x in (theirs, ours))
    cost = (s[:, None] - t[None]).abs().sum(-1)
    log_plan = -cost / TEMPERATURE
    for _ in range(ITERATIONS):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
    return (log_plan.exp() * cost).sum() / len(cost)
