"""Convolutions of ring elements, as matrix products of windows and kernels.

They are torch's `conv1d`, `conv2d`, `conv_transpose1d` and `conv_transpose2d`, which torch itself computes slowly for
int64. A transposed convolution is one of its input with zeros between the elements, and of the turned kernel.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.errors import ProtocolError
from mpcformer.ring import gemm

# The number of dimensions over which each convolution slides.
CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv_transpose1d": 1, "conv_transpose2d": 2}
# No stride, padding or dilation is larger, so that a stranger's request cannot ask for very much by a few numbers.
MAX_STEP = 1 << 16
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """The public numbers of a convolution, as torch names them. Each tuple has one number for each dimension.

    Args:
        name: a key of CONVOLUTIONS.
        stride, padding, dilation, output_padding: as in torch.
        groups: as in torch.
    """

    name: str
    stride: Shape
    padding: Shape
    dilation: Shape
    output_padding: Shape
    groups: int

    @staticmethod
    def of(
        name: str,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        output_padding: Any = 0,
        groups: int = 1,
    ) -> "Convolution":
        """Read torch's keywords.

        Raises:
            ProtocolError: a keyword is not what torch takes.
        """
        n = CONVOLUTIONS[name]
        return Convolution(
            name,
            stride=_spread(name, "stride", stride, n),
            padding=_spread(name, "padding", padding, n),
            dilation=_spread(name, "dilation", dilation, n),
            output_padding=_spread(name, "output_padding", output_padding, n),
            groups=groups,
        ).checked()

    def params(self) -> tuple[float, ...]:
        """Return the numbers in one row, as a request for a correlation carries them."""
        return tuple(map(float, (*self.stride, *self.padding, *self.dilation, *self.output_padding, self.groups)))

    @staticmethod
    def of_params(name: str, params: tuple[float, ...]) -> "Convolution":
        """Read what `params` gives.

        Raises:
            ProtocolError: they are not those of a convolution.
        """
        n = CONVOLUTIONS[name]
        if len(params) != 4 * n + 1 or any(number != int(number) for number in params if math.isfinite(number)):
            raise ProtocolError(f"{name} takes {4 * n + 1} whole numbers")
        if not all(map(math.isfinite, params)):
            raise ProtocolError(f"{name} takes finite numbers")
        *rows, groups = [tuple(int(number) for number in params[n * i : n * (i + 1)]) for i in range(5)]
        return Convolution(name, rows[0], rows[1], rows[2], rows[3], groups[0]).checked()

    def checked(self) -> "Convolution":
        """Return this convolution.

        Raises:
            ProtocolError: a number is out of its range.
        """
        steps, pads = (*self.stride, *self.dilation, self.groups), (*self.padding, *self.output_padding)
        if not all(1 <= step <= MAX_STEP for step in steps) or not all(0 <= pad <= MAX_STEP for pad in pads):
            raise ProtocolError(f"{self.name} with a stride, padding, dilation or number of groups out of range")
        if any(self.output_padding) and not self.is_transposed:
            raise ProtocolError(f"{self.name} takes no output_padding")
        return self

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return "transpose" in self.name

    def shape(self, left: Shape, right: Shape) -> Shape:
        """Return the shape of the result.

        Args:
            left: (N, C, sizes) or (C, sizes).
            right: (O, C / groups, sizes), or (C, O / groups, sizes) if it is transposed.

        Raises:
            ProtocolError: the shapes do not fit.
        """
        n = len(self.stride)
        batch, inputs, sizes = left[: -n - 1], left[-n - 1 : -n], left[-n:]
        fits = len(left) in (n + 1, n + 2) and len(right) == n + 2 and min((*left, *right), default=0) > 0
        channels = right[0] if self.is_transposed else right[1] * self.groups
        if not fits or inputs != (channels,) or right[0] % self.groups:
            raise ProtocolError(f"{self.name} of shapes {left} and {right} in {self.groups} groups is not defined")
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, right[2:], strict=True)]
        rows = zip(sizes, spans, self.stride, self.padding, self.output_padding, strict=True)
        if self.is_transposed:
            out = tuple((size - 1) * stride - 2 * pad + span + extra for size, span, stride, pad, extra in rows)
            outputs = right[1] * self.groups
        else:
            out = tuple((size + 2 * pad - span) // stride + 1 for size, span, stride, pad, _ in rows)
            outputs = right[0]
        if min(out) < 1:
            raise ProtocolError(f"{self.name} of shapes {left} and {right} gives an empty result")
        return (*batch, outputs, *out)

    def n_working(self, left: Shape, right: Shape) -> int:
        """Return the elements of the largest tensor that computing it takes: the padded input, or its windows."""
        n, out = len(self.stride), self.shape(left, right)[-len(self.stride) :]
        batch = left[0] if len(left) == n + 2 else 1
        rows = zip(left[-n:], right[2:], self.stride, self.padding, self.dilation, strict=True)
        if self.is_transposed:
            sizes = [(size - 1) * step + 1 + 2 * d * (k - 1) for size, k, step, _, d in rows]
        else:
            sizes = [size + 2 * pad for size, _, _, pad, _ in rows]
        return batch * left[-n - 1] * max(math.prod(sizes), math.prod(right[2:]) * math.prod(out))

    def __call__(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Convolve int64 tensors modulo 2^64, with shapes as in `shape`."""
        shape = self.shape(tuple(x.shape), tuple(kernel.shape))
        if x.device.type == "meta" or kernel.device.type == "meta":
            return torch.empty(shape, dtype=torch.int64, device="meta")
        n = len(self.stride)
        batched = x if x.dim() == n + 2 else x.unsqueeze(0)
        if self.is_transposed:
            return self._transposed(batched, kernel, shape[-n:]).view(shape)
        return self._slide(_padded(batched, self.padding, self.padding), kernel, self.stride, shape[-n:]).view(shape)

    def _slide(self, x: torch.Tensor, kernel: torch.Tensor, stride: Shape, out: Shape) -> torch.Tensor:
        """Multiply the windows of a padded input (N, C, sizes) by the kernel (O, C / G, sizes): (N, O, out)."""
        size = x.size(0)
        # (N, G, C / G, kernel, out) is a view, whose elements overlap.
        windows = x.reshape(size, self.groups, -1, *x.shape[2:])
        steps = windows.stride()
        view = windows.as_strided(
            (size, self.groups, windows.size(2), *kernel.shape[2:], *out),
            (
                *steps[:3],
                *(s * d for s, d in zip(steps[3:], self.dilation, strict=True)),
                *(s * t for s, t in zip(steps[3:], stride, strict=True)),
            ),
            windows.storage_offset(),
        )
        columns = view.reshape(size, self.groups, -1, math.prod(out))  # (N, G, C / G * kernel, positions)
        rows = kernel.reshape(self.groups, kernel.size(0) // self.groups, -1)  # (G, O / G, C / G * kernel)
        product = gemm.matmul(rows.unsqueeze(0).expand(size, *rows.shape).contiguous(), columns.contiguous())
        return product.reshape(size, kernel.size(0), *out)

    def _transposed(self, x: torch.Tensor, kernel: torch.Tensor, out: Shape) -> torch.Tensor:
        n = len(self.stride)
        spread = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], self.stride, strict=True)]
        wide = x.new_zeros((*x.shape[:2], *spread))
        slots: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in self.stride))
        wide[slots] = x
        # (C, O / G, sizes) -> (O, C / G, sizes), turned in all dimensions.
        grouped = kernel.reshape(self.groups, -1, *kernel.shape[1:]).transpose(1, 2)
        turned = grouped.reshape(-1, kernel.size(0) // self.groups, *kernel.shape[2:]).flip(*range(2, n + 2))
        spans = [d * (k - 1) for d, k in zip(self.dilation, kernel.shape[2:], strict=True)]
        before = tuple(span - pad for span, pad in zip(spans, self.padding, strict=True))
        after = tuple(pad + extra for pad, extra in zip(before, self.output_padding, strict=True))
        return self._slide(_padded(wide, before, after), turned, (1,) * n, out)


def _padded(x: torch.Tensor, before: Shape, after: Shape) -> torch.Tensor:
    """Put zeros around the last dimensions; negative numbers cut."""
    pads = [number for pair in zip(reversed(before), reversed(after), strict=True) for number in pair]
    return torch.nn.functional.pad(x, pads).contiguous()


def _spread(name: str, key: str, value: Any, n: int) -> Shape:
    numbers = (value,) * n if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    numbers = numbers * n if len(numbers) == 1 else numbers
    if len(numbers) != n or not all(isinstance(number, int) for number in numbers):
        raise ProtocolError(f"{name}: {key} {value!r} must be {n} whole numbers, or one")
    return numbers
