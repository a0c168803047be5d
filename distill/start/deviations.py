"""Initialise a student's constant LayerNorms: each divides by what the teacher's LayerNorm divides by on average."""

from collections.abc import Sequence

import torch

from mpcformer.engines.plaintext import predict
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.weights import norm_source
from mpcformer.tasks import Encoded

BATCH_SIZE, MAX_SENTENCES = 32, 256
# The teacher reports the variance of a LayerNorm's input under the norm's name and this suffix.
VARIANCE = ".variance"


def set_deviations(
    student: MPCFormerForSequenceClassification,
    teacher: MPCFormerForSequenceClassification,
    encoded: list[Encoded],
    *,
    pad_id: int,
    teacher_layers: Sequence[int] | None = None,
) -> None:
    """Set every `log_deviation` of the student to the mean logarithm of a row's standard deviation at the teacher.

    The mean is taken over real tokens.

    Args:
        student: the model that is changed; without constant norms nothing is done.
        teacher: the model that is observed, in float32 and evaluation mode.
        encoded: the training texts, of which the first MAX_SENTENCES are used.
        pad_id: the id of the padding token.
        teacher_layers: the index of a teacher layer for each of the student's layers; None: the same index.
    """
    names = student.config.constant_norms
    if not names:
        return
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    epsilon = teacher.config.layer_norm_eps

    def see(name: str, values: torch.Tensor, valid: torch.Tensor) -> None:
        if name.endswith(VARIANCE):
            logs = (values.detach()[valid].double() + epsilon).log() / 2
            sums[name] = sums.get(name, 0.0) + float(logs.sum())
            counts[name] = counts.get(name, 0) + logs.numel()

    before, teacher.observer = teacher.observer, see
    try:
        with torch.autocast(next(teacher.parameters()).device.type, enabled=False):
            predict(teacher, encoded[:MAX_SENTENCES], pad_id=pad_id, batch_size=BATCH_SIZE)
    finally:
        teacher.observer = before
    for name in names:
        seen = _at_teacher(name, teacher_layers) + VARIANCE
        deviation = student.get_submodule(norm_source(name)).log_deviation
        assert isinstance(deviation, torch.nn.Parameter)
        deviation.data.fill_(sums[seen] / counts[seen])


def _at_teacher(name: str, teacher_layers: Sequence[int] | None) -> str:
    """Return the name of the teacher's LayerNorm that the student's norm `name` stands for."""
    if teacher_layers is None or name == "embeddings":
        return name
    _, layer, part = name.split(".")
    return f"layer.{teacher_layers[int(layer)]}.{part}"
