"""How far rounding moves the logits of a model, which is known before it answers anybody.

A head with large weights makes much of the rounding before it: nothing overflows, but logits are off. The model runs in
floating point on made-up texts, once as it is, and once with the input of each LayerNorm and the normalised row
rounded at random to the digits that the engine keeps there, and with tanh off at random by as much as its table. Of all
errors these are the coarsest.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mpcformer.engines.lift.scales.head import TANH_ERROR
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.errors import RangeError
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.encoder import Bert, Context, Observer
from mpcformer.ring.random import KEY_BYTES, Stream

# So many texts are wanted that would be answered, and so often as many are made up to find them.
N_TEXTS, N_TOKENS, MOST_TRIES = 8, 8, 8
# Private logits of 40 models with large heads were off by up to 3.5 times what is found here.
SLACK = 4.0
# The most that rounding may move a logit, in wide and in compact rings.
WIDE_LIMIT, COMPACT_LIMIT = 0.01, 0.03
FRACTION_BITS = 24
# What the modules of an encoder call to fill their new tensors.
FILLING = {"normal_", "uniform_", "kaiming_uniform_", "ones_", "zeros_", "fill_", "zero_"}


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: on the meta device there is nothing to fill, and torch would load a compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, but for those that fill a tensor."""
        if getattr(function, "__name__", "") in FILLING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class _Model(nn.Module):
    """A student without transformers, whose tensors have the names that a student's file gives them."""

    def __init__(self, config: ModelDescription) -> None:
        super().__init__()
        self.bert = Bert(config)
        # What the classifier takes passes here, so that it can be disturbed.
        self.pooled = nn.Identity()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, ids: torch.Tensor, observer: Observer | None = None) -> torch.Tensor:
        """Return the logits (B, ...) of texts without padding (B, L)."""
        context = Context(self.classifier.weight.new_ones(ids.size(0), 1, 1, ids.size(1)), observer, [])
        logits: torch.Tensor = self.classifier(self.pooled(self.bert(ids, torch.zeros_like(ids), context)[0]))
        return logits

    def norm(self, name: str) -> nn.Module:
        """Return a LayerNorm by its name in `LiftScales.norms`."""
        if name == "embeddings":
            return self.bert.embeddings.LayerNorm
        _, index, part = name.split(".")
        layer = self.bert.layers[int(index)]
        return layer.output.LayerNorm if part == "output" else layer.attention["output"].get_submodule("LayerNorm")


def check_rounding(config: ModelDescription, scales: LiftScales, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model of which rounding may move logits too far.

    Raises:
        RangeError: it may move one by more than the limit.
    """
    found = SLACK * rounding_error(config, scales, state)
    limit = COMPACT_LIMIT if scales.rings.is_compact else WIDE_LIMIT
    if not found <= limit:
        what = "because the head's weights are large"
        raise RangeError(
            f"logits: rounding may move them by {found:.2g}, more than {limit}, {what}",
            "use --engine crypten, or train the model again with more weight decay",
            # The figure is of the weights.
            told=f"logits: rounding may move them by more than {limit}, {what}",
        )


def rounding_error(config: ModelDescription, scales: LiftScales, state: Mapping[str, torch.Tensor]) -> float:
    """Return by how much rounding moves a logit of made-up texts at the most.

    Texts that would be refused do not count, unless hardly any would be answered.

    Args:
        config: the student's description.
        scales: the engine's numbers for it.
        state: the student's weights by name, in floating point.
    """
    with torch.device("meta"), _Unfilled():
        model = _Model(config).eval()
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    # Everybody uses the same texts and the same rounding: a model is accepted always or never.
    stream = Stream(bytes(KEY_BYTES))
    shape = N_TEXTS, min(N_TOKENS, config.max_position_embeddings)
    is_answered, limits = torch.ones(N_TEXTS, dtype=torch.bool), scales.limits()

    def observe(name: str, values: torch.Tensor, _: torch.Tensor) -> None:
        if name in limits:
            low, high = limits[name]
            is_answered.logical_and_(((values >= low) & (values <= high)).flatten(1).all(1))

    texts: list[tuple[torch.Tensor, torch.Tensor]] = []
    answered: list[torch.Tensor] = []
    with torch.inference_mode():
        while len(texts) < MOST_TRIES and sum(int(each.sum()) for each in answered) < N_TEXTS:
            ids = stream.bits(shape, 40) % config.vocab_size
            is_answered.fill_(True)
            texts.append((ids, model(ids, observe)))
            answered.append(is_answered.clone())
        row_step = 2.0**-scales.rings.input_scale
        for name, norm in scales.norms.items():
            step = norm.unit * 2.0**-norm.scale
            if norm.function is None:
                # The row behind a constant LayerNorm is the stream itself, in the stream's unit.
                step = max(step, norm.unit * row_step)
            else:
                model.norm(name).register_forward_hook(_row_rounding(row_step, stream))
            model.norm(name).register_forward_pre_hook(_rounding(step, stream))
        if scales.head.is_tagged:
            model.pooled.register_forward_pre_hook(_disturbing(TANH_ERROR, stream))
        moved = torch.cat([(model(ids) - exact).abs().flatten(1).amax(1) for ids, exact in texts])
    counts = torch.cat(answered)
    return float((moved[counts] if 2 * int(counts.sum()) >= N_TEXTS else moved).max())


def _fractions(x: torch.Tensor, stream: Stream) -> torch.Tensor:
    """Return uniform numbers in [0, 1), one for each element of x."""
    return stream.bits(tuple(x.shape), FRACTION_BITS).to(x.dtype) * 2.0**-FRACTION_BITS


def _row_rounding(step: float, stream: Stream) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    """Return a hook that moves a LayerNorm's rows, before its gain, as much as rounding to multiples of `step` does."""

    def rounded(norm: nn.Module, _: Any, y: torch.Tensor) -> torch.Tensor:
        # Rounding up or down at random has this variance on average: that of numbers within step / sqrt(2).
        gain = norm.get_parameter("weight")
        return y + gain * (2 * _fractions(y, stream) - 1) * (step / math.sqrt(2.0))

    return rounded


def _disturbing(most: float, stream: Stream) -> Callable[[nn.Module, Any], tuple[torch.Tensor]]:
    """Return a hook that moves a module's input at random, by `most` at the most."""

    def disturbed(_: nn.Module, inputs: Any) -> tuple[torch.Tensor]:
        x = inputs[0]
        return (x + (2 * _fractions(x, stream) - 1) * most,)

    return disturbed


def _rounding(step: float, stream: Stream) -> Callable[[nn.Module, Any], tuple[torch.Tensor]]:
    """Return a hook that rounds a module's input up or down to a multiple of `step`, so that its mean stays."""

    def rounded(_: nn.Module, inputs: Any) -> tuple[torch.Tensor]:
        x = inputs[0]
        return (torch.floor(x / step + _fractions(x, stream)) * step,)

    return rounded
