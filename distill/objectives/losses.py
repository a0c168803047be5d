"""Losses between a student and its teacher: hidden states, attention scores and probabilities, and logits."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from distill.start.fit_attention import ROW_MEANS
from distill.start.spans import Spans
from mpcformer.approximations import QUAD_SHIFT
from mpcformer.tasks import Task

# Smaller probabilities are raised to this value before a logarithm is taken.
MIN_PROBABILITY = 1e-6
# The temperature and the number of iterations of `sinkhorn_loss`.
TEMPERATURE = 0.1
ITERATIONS = 20


def state_loss(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Mean squared error of hidden states over real tokens, summed over the embeddings and the student's layers.

    Args:
        theirs: the teacher's output with hidden_states, (B, L, H) each.
        ours: the student's, in the same shape.
        mask: (B, L).
        spans: the teacher's layers that each student layer stands for, see `Spans`.
    """
    ends = [0, *(last for _, last in spans)]
    pairs = zip([theirs.hidden_states[end] for end in ends], ours.hidden_states, strict=True)
    return _squared_error(pairs, mask.float()[:, :, None])


def score_loss(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans) -> torch.Tensor:
    """Mean squared error of raw attention scores over pairs of real tokens, summed over the student's layers.

    Args:
        theirs: the teacher's output with attention_scores, (B, A, L, L) each.
        ours: the student's, in the same shape.
        mask: (B, L).
        spans: as in `state_loss`.
    """
    pairs = zip([theirs.attention_scores[first] for first, _ in spans], ours.attention_scores, strict=True)
    return _squared_error(pairs, (mask[:, None, :, None] * mask[:, None, None, :]).float())


def _squared_error(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], weight: torch.Tensor) -> torch.Tensor:
    loss = torch.zeros((), device=weight.device)
    for a, b in pairs:
        squared = (a.float() - b.float()) ** 2 * weight
        loss = loss + squared.sum() / (weight.sum() * (squared.numel() // weight.numel()))
    return loss


def logit_loss(theirs: torch.Tensor, ours: torch.Tensor, regression: bool) -> torch.Tensor:
    """Soft cross-entropy of (B, C) logits at temperature 1, or their mean squared error for a regression."""
    if regression:
        return F.mse_loss(ours.float(), theirs.float())
    return F.cross_entropy(ours.float(), theirs.float().softmax(-1))


def embedding_loss(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """How far sentence embeddings (B, H) lie from the teacher's: in direction, and in the cosines of all their pairs.

    Source: Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual, EMNLP 2020, section 2, for the
    first; Park et al., Relational Knowledge Distillation, CVPR 2019, for the second.
    """
    a, b = (F.normalize(x.float(), dim=-1) for x in (theirs, ours))
    return (1 - (a * b).sum(-1)).mean() + F.mse_loss(b @ b.t(), a @ a.t())


def answer_loss(task: Task, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """The loss between the answers of both models: their logits (B, C), or their embeddings."""
    return embedding_loss(theirs, ours) if task.is_embedding else logit_loss(theirs, ours, task.is_regression)


def row_loss(ours: Any, mask: torch.Tensor, shift: float = QUAD_SHIFT) -> torch.Tensor:
    """Penalty for rows whose mean of (s + 5)^2 lies outside ROW_MEANS.

    It is the squared logarithm of the excess, averaged over rows and summed over layers. It keeps the calibrated ranges
    of 2Quad so narrow that the tables of a private reciprocal can cover them.

    Args:
        ours: the student's output with attention_scores, (B, A, L, L) each.
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
    """One minus the cosine similarity of hidden states.

    It is averaged over real tokens and summed over the embeddings and the student's layers.

    Args:
        theirs: the teacher's output with hidden_states, (B, L, H) each.
        ours: the student's, in the same shape.
        mask: (B, L).
        spans: as in `state_loss`.

    Source: Sanh et al., DistilBERT, 2019.
    """
    weight = mask.float()
    loss = torch.zeros((), device=mask.device)
    for end, state in zip([0, *(last for _, last in spans)], ours.hidden_states, strict=True):
        cosine = F.cosine_similarity(theirs.hidden_states[end].float(), state.float(), dim=-1)
        loss = loss + ((1 - cosine) * weight).sum() / weight.sum()
    return loss


def probability_loss(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Divergence of the student's attention probabilities from the teacher's.

    The divergence of a row is sum_j t_j log(t_j / p_j) - t_j + p_j. If rows add up to one, this is the Kullback-Leibler
    divergence. The rows of 2quad-const need not, and for them too the divergence is zero only if both rows are equal.
    It is averaged over real queries and heads and summed over layers.

    Args:
        theirs: the teacher's probabilities, (B, A, L, L) for each layer of the student.
        ours: the student's, in the same shape.
        mask: (B, L).

    Source: Wang et al., MiniLM, NeurIPS 2020.
    """
    keys, queries = mask[:, None, None, :].float(), mask[:, None, :].float()
    loss = torch.zeros((), device=mask.device)
    for t, p in zip(theirs, ours, strict=True):
        t, p = t.float().clamp(min=MIN_PROBABILITY), p.float().clamp(min=MIN_PROBABILITY)
        rows = ((t * (t / p).log() - t + p) * keys).sum(-1)  # (B, A, L)
        loss = loss + (rows * queries).sum() / (queries.sum() * rows.size(1))
    return loss


def sinkhorn_loss(theirs: torch.Tensor, ours: torch.Tensor, regression: bool) -> torch.Tensor:
    """Distance between two batches of logits (B, C) as sets: the mean cost of the entropic transport between them.

    The cost between two rows is the L1 distance of their class probabilities, or of their values for a regression.
    Every row is compared with every other row, so the losses of a batch's shares do not add up to the batch's loss.

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
