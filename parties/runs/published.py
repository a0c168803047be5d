"""The scores that MPCFormer published for BERT-base, as fractions, for comparison with those of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

SOURCE = "MPCFormer, ICLR 2023"


@dataclass(frozen=True)
class PublishedScore:
    """One column of the paper's tables: the plaintext scores of a teacher and of two distilled students on a task.

    Args:
        metric: the name of the score.
        names: the metrics of this project that mean the same. If there are two, their mean is meant.
        split: the split that was measured.
        teacher, quad_2relu, quad_2quad: the scores; None where the paper gives none.
    """

    metric: str
    names: tuple[str, ...]
    split: str
    teacher: float
    quad_2relu: float | None
    quad_2quad: float

    def keys(self, splits: Sequence[str]) -> tuple[str, ...]:
        """Return the keys of a run's metrics. They end in the name of the split if the run read several splits."""
        suffix = f"_{self.split.removeprefix('validation_')}" if len(splits) > 1 else ""
        return tuple(name + suffix for name in self.names)


def _glue(
    metric: str, names: str, teacher: float, quad_2relu: float, quad_2quad: float, split: str = "validation"
) -> PublishedScore:
    return PublishedScore(metric, tuple(names.split()), split, teacher, quad_2relu, quad_2quad)


PUBLISHED: dict[str, tuple[PublishedScore, ...]] = {
    "mnli": (
        _glue("accuracy, matched", "accuracy", 0.847, 0.850, 0.849, "validation_matched"),
        _glue("accuracy, mismatched", "accuracy", 0.850, 0.853, 0.851, "validation_mismatched"),
    ),
    "qqp": (_glue("F1", "f1", 0.881, 0.878, 0.881),),
    "qnli": (_glue("accuracy", "accuracy", 0.917, 0.912, 0.906),),
    "sst2": (_glue("accuracy", "accuracy", 0.931, 0.920, 0.920),),
    "cola": (_glue("Matthews correlation", "matthews", 0.578, 0.540, 0.526),),
    "stsb": (_glue("mean of Pearson and Spearman correlation", "pearson spearman", 0.891, 0.857, 0.803),),
    "mrpc": (_glue("F1", "f1", 0.903, 0.889, 0.887),),
    "rte": (_glue("accuracy", "accuracy", 0.697, 0.643, 0.649),),
    "imdb": (PublishedScore("accuracy", ("accuracy",), "test", 0.941, None, 0.939),),
}


def published_scores(task: str, splits: Sequence[str]) -> tuple[PublishedScore, ...]:
    """Return the published scores for a task on these splits, which may be none."""
    return tuple(score for score in PUBLISHED.get(task, ()) if score.split in splits)
