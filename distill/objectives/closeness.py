"""Compare a student's logits with its teacher's on the examples that were set aside."""

import functools
from collections.abc import Callable

from distill.objectives.losses import answer_loss
from distill.training.prepare import Prepared
from mpcformer.modeling import MPCFormerForSequenceClassification


def closeness(
    prepared: Prepared, student: MPCFormerForSequenceClassification, teacher: MPCFormerForSequenceClassification
) -> Callable[[], float]:
    """Return a function that computes the negative of the logit loss, so that higher is better.

    The teacher runs once, at the first call.
    """
    theirs = functools.cache(lambda: prepared.selection_logits(teacher))
    return lambda: -float(answer_loss(prepared.task, theirs(), prepared.selection_logits(student)))


def distance(
    prepared: Prepared, student: MPCFormerForSequenceClassification, teacher: MPCFormerForSequenceClassification
) -> float:
    """Return the distance of the student's logits from the teacher's, which is 0 if they are equal.

    For a classification, it is the mean divergence of the class probabilities, in nats; for a regression, the mean
    squared error; for embeddings, see `embedding_loss`.
    """
    theirs, ours = prepared.selection_logits(teacher), prepared.selection_logits(student)
    found, least = (float(answer_loss(prepared.task, theirs, logits)) for logits in (ours, theirs))
    return found - least
