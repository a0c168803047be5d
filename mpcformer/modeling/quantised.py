"""Students whose linear maps have weights of a few bits: how they are rounded, and how a file keeps them.

The private engine folds the gain of a LayerNorm into the map behind it, so the folded map is what is rounded: each
output channel to integers of `bits` bits, symmetric around zero, times a power of two of its own. Where the moments of
a map's inputs are known, each weight that is rounded is made up for by those that are not yet, and the mean of what is
left by the bias. A file keeps the integers as int8 and the exponents. Reading it divides the gains out again, so that
plaintext computes with the numbers that the compact rings of the engine `lift` carry, but for units and the means that
are subtracted, and rounding makes hardly a difference between the two.
Source of the rounding: Frantar, Ashkboos, Hoefler, Alistarh, GPTQ, ICLR 2023.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling.bounds import centred_columns
from mpcformer.modeling.description import ModelDescription
from mpcformer.modeling.precision import BITS
from mpcformer.modeling.weights import norm_source

INTEGERS, EXPONENTS = ".int8", ".exponent"
# The part of the mean variance that is added to the variance of each input; the least mean variance; and how many
# columns are rounded before the rest is updated.
DAMPING, SMALLEST, COLUMNS = 0.01, 1e-12, 64
# Gains are rounded to multiples of 2^-GAIN_SCALE, and no step is finer than the exponents say: compact rings carry
# these with the usual units. The map behind GeLU has three bits more, because the form's 1 / 8 is folded into it.
GAIN_SCALE, LEAST_GAIN = 12, 2.0**-10
FINEST = {"query": 9, "key": 9, "value": 9, "attention.output": 9, "intermediate": 10, "output": 9, "pooler": 12}


@dataclass(frozen=True)
class RoundedMap:
    """A linear map that is rounded.

    Args:
        source: its prefix in a state dict.
        norm: the prefix of the LayerNorm before it, whose gain is folded into it; None if there is none.
        finest: the largest exponent of a step.
        factor: what the map is multiplied by before it is rounded.
    """

    source: str
    norm: str | None
    finest: int
    factor: float = 1.0


@dataclass(frozen=True)
class Moments:
    """The moments of the rows (R, in) that enter a map.

    Args:
        n: R.
        total: the sum of the rows, (in,).
        products: the sum of their outer products, (in, in).
    """

    n: int
    total: torch.Tensor
    products: torch.Tensor

    @classmethod
    def none(cls, size: int) -> "Moments":
        """Return the moments of no rows of `size`."""
        return cls(0, torch.zeros(size), torch.zeros(size, size))

    def plus(self, rows: torch.Tensor) -> "Moments":
        """Return the moments of more rows, float32."""
        return Moments(self.n + rows.size(0), self.total + rows.sum(0), self.products.addmm_(rows.t(), rows))

    @property
    def mean(self) -> torch.Tensor:
        """The mean row, float64."""
        return self.total.double() / max(1, self.n)

    def covariance(self) -> torch.Tensor:
        """Return the covariance, float64, with so much added to its diagonal that it has an inverse."""
        covariance = self.products.double() / max(1, self.n) - torch.outer(self.mean, self.mean)
        covariance.diagonal().add_(DAMPING * max(float(covariance.diagonal().mean()), SMALLEST))
        return covariance


def query_fraction(head_size: int) -> float:
    """Return the part of 1 / sqrt(head_size) that is no power of two, in [1, 2): the queries carry it."""
    log_root = -math.log2(head_size) / 2
    return float(2.0 ** (log_root - math.floor(log_root)))


def rounded_maps(config: ModelDescription) -> Iterator[RoundedMap]:
    """Yield the maps of a model that are rounded: all but the embeddings and the classifier."""
    norm = norm_source("embeddings")
    for n in range(config.num_hidden_layers):
        source = f"bert.encoder.layer.{n}"
        for part in ("query", "key", "value"):
            factor = query_fraction(config.head_size) if part == "query" else 1.0
            yield RoundedMap(f"{source}.attention.self.{part}", norm, FINEST[part], factor)
        yield RoundedMap(f"{source}.attention.output.dense", None, FINEST["attention.output"])
        norm = norm_source(f"layer.{n}.attention")
        yield RoundedMap(f"{source}.intermediate.dense", norm, FINEST["intermediate"])
        yield RoundedMap(f"{source}.output.dense", None, FINEST["output"])
        norm = norm_source(f"layer.{n}.output")
    if config.has_dense:
        yield RoundedMap("bert.pooler.dense", norm, FINEST["pooler"])


def quantise(
    state: Mapping[str, torch.Tensor],
    config: ModelDescription,
    bits: int,
    moments: Mapping[str, Moments] | None = None,
) -> dict[str, torch.Tensor]:
    """Round the linear maps of a student.

    Args:
        state: its state dict.
        config: its configuration, without constant LayerNorms.
        bits: one of BITS.
        moments: those of the inputs of the maps by `RoundedMap.source`; None: each weight is rounded by itself.

    Returns:
        The tensors as a file keeps them; `restored` makes a state dict of them again.

    Raises:
        UserInputError: weights of so many bits are not defined.
        RangeError: the moments are not finite.
    """
    if bits not in BITS:
        raise UserInputError(f"--weight-bits: {bits} is unknown", f"choose one of: {', '.join(map(str, BITS))}")
    kept = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    for rounded in rounded_maps(config):
        if rounded.norm is not None:
            gain = kept[f"{rounded.norm}.weight"].double()
            kept[f"{rounded.norm}.weight"] = ((gain * 2.0**GAIN_SCALE).round() * 2.0**-GAIN_SCALE).float()
    for rounded in rounded_maps(config):
        name = f"{rounded.source}.weight"
        weight = kept.pop(name).double()  # (out, in)
        bias = kept[f"{rounded.source}.bias"].double()
        folded = weight * rounded.factor
        if rounded.norm is None:
            folded = folded - folded.mean(0, keepdim=True)  # the next LayerNorm subtracts the mean of the outputs
        else:
            gain = kept[f"{rounded.norm}.weight"].double()
            folded = centred_columns((folded * gain).t()).t()
        integers, exponents = _rounded(folded, bits, rounded.finest)
        if moments is not None:
            integers = _made_up_for(folded, exponents, bits, moments[rounded.source].covariance())
        if rounded.norm is not None:
            integers = integers * (gain.abs() >= LEAST_GAIN)
        if moments is not None:
            left = folded - integers.double() * torch.exp2(-exponents.double())[:, None]
            bias = bias + left @ moments[rounded.source].mean / rounded.factor
        kept[f"{rounded.source}{INTEGERS}"], kept[f"{rounded.source}{EXPONENTS}"] = integers, exponents
        if rounded.norm is not None:
            # What the LayerNorm's bias adds to the map's result stays what it was.
            before = state[f"{rounded.norm}.bias"].detach().cpu().double()
            bias = bias + (weight - _weight(kept, rounded)) @ before
        kept[f"{rounded.source}.bias"] = bias.float()
    return kept


def _rounded(weight: torch.Tensor, bits: int, finest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers (out, in) and exponents (out,) with weight about integers 2^-exponents."""
    largest = 2 ** (bits - 1) - 1
    top = weight.abs().amax(1, keepdim=True).clamp(min=2.0**-100)
    widest = torch.floor(torch.log2(largest / top)).clamp(-100, finest)
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    # Twice as fine a step cuts the largest weights off, and may still be the closer one.
    for exponents in (widest, (widest + 1).clamp(max=finest)):
        integers = (weight * torch.exp2(exponents)).round().clamp(-largest, largest)
        error = (integers * torch.exp2(-exponents) - weight).square().sum(1, keepdim=True)
        if best is None:
            best = integers, exponents, error
            continue
        better = error < best[2]
        best = torch.where(better, integers, best[0]), torch.where(better, exponents, best[1]), error
    assert best is not None
    return best[0].to(torch.int8), best[1][:, 0].to(torch.int8)


def _made_up_for(weight: torch.Tensor, exponents: torch.Tensor, bits: int, covariance: torch.Tensor) -> torch.Tensor:
    """Round a weight (out, in), one input after the other, and move what each loses to the inputs that follow.

    Args:
        weight: float64.
        exponents: of the steps, (out,).
        bits: of the integers.
        covariance: of the inputs, (in, in).
    """
    order = torch.argsort(covariance.diagonal(), descending=True)
    try:
        factor = torch.linalg.cholesky(torch.linalg.inv(covariance[order][:, order]), upper=True)
    except RuntimeError:  # the error of torch.linalg is one of these
        raise RangeError(
            "the inputs of a linear map are not finite on the training texts",
            "distil the student again, with a lower learning rate",
        ) from None
    left, integers = weight[:, order].clone(), torch.empty_like(weight)
    step, largest = torch.exp2(-exponents.double()), 2 ** (bits - 1) - 1
    for first in range(0, weight.size(1), COLUMNS):
        last = min(first + COLUMNS, weight.size(1))
        errors = torch.empty(weight.size(0), last - first, dtype=torch.float64)
        for i in range(first, last):
            integers[:, i] = (left[:, i] / step).round().clamp(-largest, largest)
            error = (left[:, i] - integers[:, i] * step) / factor[i, i]
            left[:, i:last] -= torch.outer(error, factor[i, i:last])
            errors[:, i - first] = error
        left[:, last:] -= errors @ factor[first:last, last:]
    found = torch.empty_like(integers)
    found[:, order] = integers
    return found.to(torch.int8)


def is_quantised(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether tensors are those of a quantised student's file."""
    return any(name.endswith(INTEGERS) for name in tensors)


def restored(tensors: Mapping[str, torch.Tensor], config: ModelDescription) -> dict[str, torch.Tensor]:
    """Return a state dict of the tensors in a quantised student's file.

    Raises:
        UserInputError: a tensor is missing or of another type or shape.
    """
    state = dict(tensors)
    for rounded in rounded_maps(config):
        try:
            weight = _weight(tensors, rounded)
        except (KeyError, RuntimeError, ValueError):
            raise UserInputError(
                f"the weights have no whole integers and exponents of {rounded.source}",
                "use the config.json and the weights of one student",
            ) from None
        for suffix in (INTEGERS, EXPONENTS):
            del state[f"{rounded.source}{suffix}"]
        state[f"{rounded.source}.weight"] = weight.float()
    return state


def _weight(tensors: Mapping[str, torch.Tensor], rounded: RoundedMap) -> torch.Tensor:
    """Return the weight (out, in) that a map's integers stand for, in float64."""
    integers, exponents = (tensors[f"{rounded.source}{suffix}"] for suffix in (INTEGERS, EXPONENTS))
    if integers.dtype != torch.int8 or exponents.dtype != torch.int8 or exponents.shape != integers.shape[:1]:
        raise ValueError
    weight = integers.double() * torch.exp2(-exponents.double())[:, None] / rounded.factor
    if rounded.norm is None:
        return weight
    gain = tensors[f"{rounded.norm}.weight"].double()
    # What so small a gain multiplies hardly matters, and would become huge.
    is_used = gain.abs() >= LEAST_GAIN
    return torch.where(is_used, weight / torch.where(is_used, gain, 1.0), 0.0)
