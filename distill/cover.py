"""Widen a student's ranges to texts that are unlike its training texts, and count which texts are still refused."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.ready import RUNS, engines
from distill.training.calibrate import observed
from distill.training.disturb import Vocabulary, disturbed
from distill.training.refusals import refused
from mpcformer.engines.base import BatchShape, PublicModel
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.engines.registry import DEFAULT_ENGINE, estimate_batch
from mpcformer.errors import RangeError
from mpcformer.modeling import MPCFormerForSequenceClassification, Ranges
from mpcformer.tasks import Encoded

# How many disturbed texts widen the ranges, and on how many others refusals are counted.
N_WIDENING, N_COUNTED = 180, 60
# Ranges are widened only as far as the dealer sends at most this many times as many bytes.
MOST_BYTES = 1.25
SET_ASIDE = "training texts set aside"


@dataclass(frozen=True)
class Texts:
    """The texts of a task as ranges need them.

    Args:
        training: those that were trained on.
        set_aside: those that were set aside.
        vocabulary: the tokens to make other texts of.
        pad_id: the id of the padding token.
        max_length: the number of tokens at which the longest training texts were cut.
    """

    training: list[Encoded]
    set_aside: list[Encoded]
    vocabulary: Vocabulary
    pad_id: int
    max_length: int


def cover(
    student: MPCFormerForSequenceClassification, trained: Ranges, texts: Texts, *, seed: int, widen: bool = True
) -> tuple[Ranges, dict[str, str], dict[str, Any]]:
    """Return the ranges that the student is saved with, the engines' verdicts on them, and a record for its card.

    The ranges contain those of the training texts. They are widened by one kind of text after the other, in the order
    of `KINDS`, but not by a kind for which the default engine's tables would be too wide or too dear.

    Args:
        student: the student, with its final weights, on the CPU.
        trained: its ranges on the training texts.
        texts: the task's texts.
        seed: determines the disturbed texts.
        widen: whether to widen the ranges at all.
    """
    positions = student.config.max_position_embeddings
    made = disturbed(texts.training, texts.vocabulary, n=N_WIDENING, positions=positions, seed=seed) if widen else {}
    seen = {kind: observed(student, rows, pad_id=texts.pad_id) for kind, rows in made.items() if rows}
    tokens = round(statistics.median(len(row.input_ids) for row in texts.training))
    before = _dealer_bytes(student, trained, tokens)
    ranges, kinds, after = trained, list[str](), before
    for kind, found in seen.items():
        wider = ranges.covering(found)
        if before and 0 < (cost := _dealer_bytes(student, wider, tokens)) <= MOST_BYTES * before:
            ranges, after = wider, cost
            kinds.append(kind)
    weights, max_length = student.state_dict(), texts.max_length
    verdicts = engines(student.config, ranges, weights, max_length)
    if kinds and verdicts[DEFAULT_ENGINE] != RUNS:  # the weights might overflow a ring that wider ranges make narrower
        ranges, kinds, after = trained, [], before
        verdicts = engines(student.config, ranges, weights, max_length)
    record: dict[str, Any] = {"kinds": kinds, "n_texts": sum(len(made[kind]) for kind in kinds)}
    record |= {"dealer_bytes": {}, "refused": {}}
    if verdicts[DEFAULT_ENGINE] == RUNS:
        record["dealer_bytes"] = {"tokens": tokens, "training texts": before, "widened": after}
        others = disturbed(texts.training, texts.vocabulary, n=N_COUNTED, positions=positions, seed=seed + 1)
        record["refused"] = _count(student, ranges, {SET_ASIDE: texts.set_aside, **others}, texts.pad_id)
    return ranges, verdicts, record


def _dealer_bytes(student: MPCFormerForSequenceClassification, ranges: Ranges, tokens: int) -> int:
    """Return the dealer's bytes for a sentence of so many tokens; 0 if the default engine cannot carry the ranges."""
    try:
        public = PublicModel(student.config, ranges)
        return estimate_batch(DEFAULT_ENGINE, public, BatchShape(1, tokens)).dealer_bytes
    except RangeError:
        return 0


def _count(
    student: MPCFormerForSequenceClassification,
    ranges: Ranges,
    kinds: Mapping[str, Sequence[Encoded]],
    pad_id: int,
) -> dict[str, dict[str, int]]:
    """Return for each kind of text how many there are, and how many of them leave the limits of the engine's tables."""
    limits = engine_constants(PublicModel(student.config, ranges)).limits()
    return {
        kind: {"texts": len(rows), "refused": sum(refused(student, rows, limits, pad_id=pad_id))}
        for kind, rows in kinds.items()
    }
