"""Assign each of a student's layers the teacher's layers that it stands for."""

import itertools
from collections.abc import Sequence

# One pair per student layer: the index of the first teacher layer that it stands for, and one past the last.
Spans = Sequence[tuple[int, int]]


def layer_spans(n_teacher: int, n_student: int) -> list[tuple[int, int]]:
    """Divide the teacher's layers among the student's, in order and as evenly as possible.

    Args:
        n_teacher: the number of the teacher's layers.
        n_student: the number of the student's layers.

    Returns:
        One pair per student layer: the index of its first teacher layer, and one past the last.

    Raises:
        ValueError: the student has no layers, or more than the teacher.
    """
    if not 0 < n_student <= n_teacher:
        raise ValueError(f"{n_student} layers cannot stand for {n_teacher}")
    ends = [round(index * n_teacher / n_student) for index in range(n_student + 1)]
    return list(itertools.pairwise(ends))
