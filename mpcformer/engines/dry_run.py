"""Stand-ins for channel and store, with which an engine's own forward pass on meta tensors tells its plan."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mpcformer.channel import Counters, Spec
from mpcformer.correlations import Dealt, Request, sketch
from mpcformer.ring.packing import Operand

# Tensors without values have few shapes and types, each many times.
KEPT_TENSORS = 1024


class PlanRecorder:
    """A correlation store that records what is asked for, and gives back tensors without values."""

    def __init__(self, rank: int) -> None:
        self.plan: list[Request] = []
        self._rank = rank

    def take(self, request: Request) -> Dealt:
        """Note the request."""
        self.plan.append(request)
        return sketch(request, self._rank)

    def take_packed(self, request: Request) -> Sequence[Operand]:
        """Note the request."""
        return self.take(request).shares

    def preview(self, operation: int, request: Request) -> Dealt:
        """Return what will be asked for, without values."""
        return sketch(request, self._rank)

    def skip(self, request: Request) -> None:
        """Note the request."""
        self.plan.append(request)

    def input_mask(self, request: Request) -> torch.Tensor:
        """Note the request, and return the mask without values."""
        self.plan.append(request)
        return sketch(request, self._rank).shares[0]

    def work_ahead(self) -> None:
        """Do nothing: a plan waits for nobody."""


class SilentChannel:
    """A channel for plans, on which every awaited message has arrived. It counts each message received as a round."""

    def __init__(self) -> None:
        self.counters = Counters()

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count a message."""
        self.counters.messages_sent += 1
        self.counters.bytes_sent += sum(t.numel() * t.element_size() for t in tensors)

    def settle(self, n_bytes: int) -> None:
        """Do nothing: nothing is queued."""

    def receive(self, specs: Sequence[Spec]) -> list[torch.Tensor]:
        """Count a message of the expected shapes."""
        self.counters.messages_received += 1
        self.counters.rounds += 1
        self.counters.bytes_received += sum(spec.n_bytes for spec in specs)
        return [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in specs]


class WithoutValues(TorchFunctionMode):
    """A block in which operations on tensors tell shapes and types alone: no element is computed or kept.

    Tensors say that they are on PyTorch's meta device, which serves the same end. Its operations are written in Python,
    however, and the first of them imports PyTorch's compiler, which takes longer than all the plans of a session.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Apply the rule of a function; compute what has none, and drop the values."""
        rule, options = RULES.get(func), kwargs or {}
        if rule is not None:
            return rule(*args, **options)
        result = func(*args, **{name: value for name, value in options.items() if name != "device"})
        return without_values(result.shape, result.dtype) if isinstance(result, torch.Tensor) else result


def without_values(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor whose elements all share one place in memory. It may be another result's too: none is changed."""
    return _without_values(tuple(shape), dtype)


@lru_cache(KEPT_TENSORS)
def _without_values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((), dtype=dtype).expand(shape)


def _combined(first: Any, second: Any, **_: Any) -> torch.Tensor:
    shapes = [value.shape for value in (first, second) if isinstance(value, torch.Tensor)]
    shape = shapes[0] if shapes[0] == shapes[-1] else np.broadcast_shapes(*shapes)
    return without_values(shape, torch.result_type(first, second))


def _compared(first: Any, second: Any) -> torch.Tensor:
    return without_values(_combined(first, second).shape, torch.bool)


def _same(value: torch.Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> torch.Tensor:
    return without_values(value.shape, dtype or value.dtype)


def _multiplied(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return without_values((*batch, x.size(-2), y.size(-1)), torch.result_type(x, y))


def _summed(value: torch.Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> torch.Tensor:
    dims = range(value.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    dropped = {d % value.dim() for d in dims}
    kept = [1 if d in dropped else n for d, n in enumerate(value.shape) if keepdim or d not in dropped]
    return without_values(kept, value.dtype if value.is_floating_point() else torch.int64)


def _joined(values: Sequence[torch.Tensor], dim: int = 0, **_: Any) -> torch.Tensor:
    shape = list(values[0].shape)
    shape[dim] = sum(value.size(dim) for value in values)
    return without_values(shape, values[0].dtype)


def _stacked(values: Sequence[torch.Tensor], dim: int = 0, **_: Any) -> torch.Tensor:
    shape = list(values[0].shape)
    shape.insert(dim % (len(shape) + 1), len(values))
    return without_values(shape, values[0].dtype)


def _converted(value: torch.Tensor, *options: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    dtypes = [option for option in options if isinstance(option, torch.dtype)]
    return without_values(value.shape, dtype or (dtypes[0] if dtypes else value.dtype))


def _empty(*sizes: Any, size: Any = None, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    if size is None:
        size = sizes if not sizes or isinstance(sizes[0], int) else sizes[0]
    return without_values(size, dtype or torch.get_default_dtype())


def _methods(names: str) -> list[Any]:
    return [getattr(torch.Tensor, name) for name in names.split()]


# Views need no rule: those of a tensor whose elements share one place are free.
RULES: dict[Any, Callable[..., Any]] = {
    torch.Tensor.device.__get__: lambda _: torch.device("meta"),
    torch.empty: _empty,
    torch.zeros: _empty,
    torch.ones: _empty,
    torch.matmul: _multiplied,
    torch.cat: _joined,
    torch.stack: _stacked,
    torch.Tensor.sum: _summed,
    torch.Tensor.__setitem__: lambda *_: None,
    torch.Tensor.to: _converted,
    torch.Tensor.long: lambda value: without_values(value.shape, torch.int64),
}
RULES |= dict.fromkeys(_methods("matmul __matmul__"), _multiplied)
RULES |= dict.fromkeys(_methods("ge gt le lt eq ne __ge__ __gt__ __le__ __lt__ __eq__ __ne__"), _compared)
RULES |= dict.fromkeys(
    _methods(
        "add sub mul __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __and__ __rand__ __or__ __ror__ __xor__"
        " __rxor__ __lshift__ __rshift__"
    ),
    _combined,
)
RULES |= dict.fromkeys(
    _methods(
        "neg neg_ add_ sub_ mul_ bitwise_and_ copy_ masked_fill clone square __iadd__ __isub__ __imul__ __iand__"
        " __ior__ __ixor__ __ilshift__ __irshift__"
    ),
    _same,
)
RULES |= dict.fromkeys([torch.add, torch.sub, torch.mul, torch.bitwise_and, torch.bitwise_xor], _combined)
RULES |= dict.fromkeys([torch.empty_like, torch.zeros_like, torch.ones_like], _same)
