"""Where a student's constant LayerNorms start: at what the teacher's LayerNorms divide by on average."""

from collections.abc import Sequence

import torch

from mpcformer.engines.plaintext import predict
from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.weights import norm_source
from mpcformer.tasks import Encoded

BATCH_SIZE, MAX_SENTENCES = 32, 256
VARIANCE = ".variance"


def set_deviations(
    student: MPCFormerForSequenceClassification,
    teacher: MPCFormerForSequenceClassification,
    encoded: list[Encoded],
    *,
    pad_id: int,
    teacher_layers: Sequence[int] | None = None,
) -> None:
    """Set every `log_deviation` to the mean, over real tokens, of the logarithm of a row's deviation at the teacher.

    Args:
        student: what is set; without constant norms nothing is done.
        teacher: what is looked at, in float32 and evaluation mode.
        encoded: training sentences; the first MAX_SENTENCES are used.
        pad_id: the padding token.
        teacher_layers: for each of the student's layers, the teacher's it stands for; None: the same.
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
    if teacher_layers is None or name == "embeddings":
        return name
    _, layer, part = name.split(".")
    return f"layer.{teacher_layers[int(layer)]}.{part}"
