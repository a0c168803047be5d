"""The moments of what enters a student's linear maps, by which its weights are rounded."""

from collections.abc import Callable

import torch
from torch import nn

from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.quantised import Moments, RoundedMap, rounded_maps
from mpcformer.tasks import Encoded, pad_batch

# Texts that are enough for the moments, and how many are read at a time.
N_TEXTS, BATCH_SIZE = 256, 16


def moments_of(
    student: MPCFormerForSequenceClassification, encoded: list[Encoded], *, pad_id: int
) -> dict[str, Moments]:
    """Return the moments of the inputs of each map that is rounded, over the real tokens of the first texts.

    Args:
        student: the student, in evaluation mode.
        encoded: training texts.
        pad_id: the id of the padding token.
    """
    config, parameters = ModelDescription.of(student.config), student.state_dict(keep_vars=True)
    modules = {id(module.weight): module for module in student.modules() if isinstance(module, nn.Linear)}
    device = next(student.parameters()).device
    found: dict[str, Moments] = {}
    mask = torch.empty(0)

    def noting(rounded: RoundedMap) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        gain, bias = (parameters[f"{rounded.norm}.{part}"] if rounded.norm else None for part in ("weight", "bias"))
        step = _step(config, rounded.source)

        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach()
            rows = rows[mask[:, ::step]] if rows.dim() == 3 else rows
            if gain is not None and bias is not None:
                # The folded map takes the row before gain and bias.
                rows = torch.where(gain == 0, 0.0, (rows - bias) / torch.where(gain == 0, 1.0, gain))
            found[rounded.source] = found.get(rounded.source, Moments.none(rows.size(1))).plus(rows.float().cpu())

        return note

    hooks = [
        modules[id(parameters[f"{rounded.source}.weight"])].register_forward_pre_hook(noting(rounded))
        for rounded in rounded_maps(config)
    ]
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for first in range(0, min(N_TEXTS, len(encoded)), BATCH_SIZE):
                batch = pad_batch(encoded[first : min(first + BATCH_SIZE, N_TEXTS)], pad_id)
                mask = batch["attention_mask"].bool().to(device)
                student(**{name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _step(config: ModelDescription, source: str) -> int:
    """Return how far apart in the text the positions are of which a map takes the rows."""
    if ".layer." not in source:  # the head's dense layer takes one row of a sentence
        return 1
    before, after = config.steps[int(source.split(".")[3])]
    return before if source.endswith((".key", ".value")) else after
