"""Losses between a student and its teacher: hidden states, attention scores and probabilities, and logits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from distill.start.fit_attention import ROW_MEANS
from distill.start.spans import Spans
from mpcformer.approximations import QUAD_SHIFT
from mpcformer.tasks import Task

# As `ModelDescription.steps` gives them.
Steps = Sequence[tuple[int, int]]
# Smaller probabilities are raised to this value before a logarithm is taken.
MIN_PROBABILITY = 1e-6
# The temperature and the number of iterations of `sinkhorn_loss`.
TEMPERATURE = 0.1
ITERATIONS = 20


@dataclass(frozen=True)
class LayerPair:
    """What is compared of one layer of the student and the layer of its teacher; of the positions that are kept.

    Args:
        theirs, ours: the same value of the teacher and of the student: hidden states (B, Q, H), or raw scores
            (B, A, Q, L).
        rows: the mask of the queries, (B, Q).
        keys: the mask of the keys, (B, L).
    """

    theirs: torch.Tensor
    ours: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor


def state_pairs(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans, steps: Steps) -> list[LayerPair]:
    """Return the hidden states of the embeddings and of the student's layers, with the teacher's for each.

    Args:
        theirs: the teacher's output with hidden_states, (B, L, H) each.
        ours: the student's, of the positions that each layer keeps.
        mask: (B, L).
        spans: the teacher's layers that each student layer stands for, see `Spans`.
        steps: of the student, see `ModelDescription.steps`.
    """
    ends, kept = [0, *(last for _, last in spans)], [1, *(after for _, after in steps)]
    states = zip(ends, kept, ours.hidden_states, strict=True)
    return [
        LayerPair(theirs.hidden_states[end][:, ::step], state, mask[:, ::step], mask[:, ::step])
        for end, step, state in states
    ]


def score_pairs(theirs: Any, ours: Any, mask: torch.Tensor, spans: Spans, steps: Steps) -> list[LayerPair]:
    """Return the raw attention scores of the student's layers, with the teacher's for each.

    Args:
        theirs: the teacher's output with attention_scores, (B, A, L, L) each.
        ours: the student's, of the positions that each layer gets and keeps.
        mask, spans, steps: as in `state_pairs`.
    """
    layers = zip(spans, steps, ours.attention_scores, strict=True)
    return [
        LayerPair(theirs.attention_scores[first][:, :, ::after, ::before], scores, mask[:, ::after], mask[:, ::before])
        for (first, _), (before, after), scores in layers
    ]


def state_loss(pairs: Iterable[LayerPair]) -> torch.Tensor:
    """Mean squared error of hidden states over real tokens, summed over the embeddings and the student's layers."""
    return _squared_error((pair.theirs, pair.ours, pair.rows.float()[:, :, None]) for pair in pairs)


def score_loss(pairs: Iterable[LayerPair]) -> torch.Tensor:
    """Mean squared error of raw attention scores over pairs of real tokens, summed over the student's layers."""
    return _squared_error(
        (pair.theirs, pair.ours, (pair.rows[:, None, :, None] * pair.keys[:, None, None, :]).float()) for pair in pairs
    )


def _squared_error(triples: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    loss = torch.zeros(())
    for a, b, weight in triples:
        squared = (a.float() - b.float()) ** 2 * weight
        loss = loss.to(squared.device) + squared.sum() / (weight.sum() * (squared.numel() // weight.numel()))
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


def row_loss(ours: Any, mask: torch.Tensor, steps: Steps, shift: float = QUAD_SHIFT) -> torch.Tensor:
    """Penalty for rows whose mean of (s + 5)^2 lies outside ROW_MEANS.

    It is the squared logarithm of the excess, averaged over rows and summed over layers. It keeps the calibrated ranges
    of 2Quad so narrow that the tables of a private reciprocal can cover them.

    Args:
        ours: the student's output with attention_scores, (B, A, Q, L) each.
        mask: (B, L).
        steps: as in `state_pairs`.
        shift: `square_shift` of the student's form of softmax: 5 in (s + 5)^2.
    """
    least, most = (math.log(bound) for bound in ROW_MEANS)
    loss = torch.zeros((), device=mask.device)
    # A mixture of two models has the scores of some layers only, and all positions.
    for scores, (before, after) in zip(ours.attention_scores, steps, strict=False):
        keys, rows = mask[:, None, None, ::before].float(), mask[:, None, ::after].float()
        mean = (keys * (scores.float() + shift) ** 2).sum(-1) / keys.sum(-1)  # (B, A, Q)
        log = mean.clamp(min=1e-6).log()
        outside = F.relu(least - log).square() + F.relu(log - most).square()
        loss = loss + (outside * rows).sum() / (rows.sum() * scores.size(1))
    return loss


def direction_loss(pairs: Iterable[LayerPair]) -> torch.Tensor:
    """One minus the cosine similarity of hidden states.

    It is averaged over real tokens and summed over the embeddings and the student's layers.

    Source: Sanh et al., DistilBERT, 2019.
    """
    loss = torch.zeros(())
    for pair in pairs:
        cosine, weight = F.cosine_similarity(pair.theirs.float(), pair.ours.float(), dim=-1), pair.rows.float()
        loss = loss.to(cosine.device) + ((1 - cosine) * weight).sum() / weight.sum()
    return loss


def probability_loss(pairs: Iterable[LayerPair]) -> torch.Tensor:
    """Divergence of the student's attention probabilities from the teacher's.

    The divergence of a row is sum_j t_j log(t_j / p_j) - t_j + p_j. If rows add up to one, this is the Kullback-Leibler
    divergence. The rows of 2quad-const need not, and for them too the divergence is zero only if both rows are equal.
    It is averaged over real queries and heads and summed over layers.

    Source: Wang et al., MiniLM, NeurIPS 2020.
    """
    loss = torch.zeros(())
    for pair in pairs:
        keys, queries = pair.keys[:, None, None, :].float(), pair.rows[:, None, :].float()
        t, p = (x.float().clamp(min=MIN_PROBABILITY) for x in (pair.theirs, pair.ours))
        rows = ((t * (t / p).log() - t + p) * keys).sum(-1)  # (B, A, Q)
        loss = loss.to(rows.device) + (rows * queries).sum() / (queries.sum() * rows.size(1))
    return loss


def grouped(probabilities: torch.Tensor, step: int) -> torch.Tensor:
    """Add up the probabilities (..., L) of the keys between two kept ones, which go to the first of them: (..., K)."""
    padded = F.pad(probabilities, (0, -probabilities.size(-1) % step))
    return padded.view(*padded.shape[:-1], -1, step).sum(-1)


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
