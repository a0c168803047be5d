"""CrypTen's shared tensors: how they are made, combined with public and shared values, divided, and opened.

The kinds of mistake that these methods replace: a public factor rounded to 16 bits; a fraction that meets a whole
number at scale 1 and is rounded to one; factors of different scales; a share that changes under a tensor that shares
its memory; a placeholder that is checked as if it were an input.
"""

import math
from typing import Any

import torch

from mpcformer.engines.crypten.compat.fixed_point import MAX_ENCODED, decode, encode, times_public, truncate
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current
from mpcformer.engines.crypten.compat.products import Arithmetic, Binary, multiply, square
from mpcformer.engines.crypten.compat.provider import triple_spec
from mpcformer.errors import ProtocolError, RangeError

SENTINEL = -1
Encoder: Any = crypten.encoder.FixedPointEncoder


def _make_arithmetic(
    self: Any,
    tensor: Any = None,
    size: Any = None,
    broadcast_size: bool = False,
    precision: int | None = None,
    src: int = 0,
    device: Any = None,
) -> None:
    """Share party `src`'s tensor. The other party tells its size, by `size` or by a tensor that is not read."""
    if src == SENTINEL:
        return
    self.encoder = Encoder(precision_bits=precision)
    value, size = _source(self.encoder, tensor, size, broadcast_size, src)
    self.share = Arithmetic.PRZS(size, device=_device(tensor, device)).share
    if value is not None:
        self.share += value


def _make_binary(
    self: Any, tensor: Any = None, size: Any = None, broadcast_size: bool = False, src: int = 0, device: Any = None
) -> None:
    """Share the words of party `src`'s tensor by XOR."""
    if src == SENTINEL:
        return
    self.encoder = Encoder(precision_bits=0)
    value, size = _source(self.encoder, tensor, size, broadcast_size, src)
    self.share = Binary.PRZS(size, device=_device(tensor, device)).share
    if value is not None:
        self.share ^= value


def _source(encoder: Any, tensor: Any, size: Any, broadcast_size: bool, src: int) -> tuple[Any, Any]:
    """Return the encoded tensor at the source, else None; and the size."""
    assert src in (0, 1), "specified source party does not exist"
    value = None
    if current().rank == src:
        assert tensor is not None, "source must provide a data tensor"
        assert getattr(tensor, "src", src) == src, "source of data tensor must match source of encryption"
        value = encoder.encode(tensor)
    told = broadcast_size or tensor is not None or size is not None
    assert told, "must specify tensor or size, or set broadcast_size"
    if value is not None:
        size = value.size()
    elif tensor is not None:
        size = torch.as_tensor(tensor).size()
    return value, current().communicator.broadcast_obj(size, src) if broadcast_size else size


def _device(tensor: Any, device: Any) -> Any:
    return device if device is not None else getattr(tensor, "device", None)


def _is_public(value: Any) -> bool:
    return isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, crypten.CrypTensor)


def _check_size(x: Any, largest: int) -> None:
    """Refuse a whole public factor that leaves no room for a number; at scale 1 it is a ring element, as any other."""
    if x.encoder.scale > 1 and largest >= MAX_ENCODED:
        raise RangeError(f"a public factor of {largest} exceeds {MAX_ENCODED:.0f}", "fixed point cannot carry it")


def _factor(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _n_terms(op: str, share: torch.Tensor, factor: torch.Tensor) -> int:
    """Return how many products one element of the result adds up."""
    if op == "mul":
        return 1
    if op == "matmul":
        return share.size(-1) if share.dim() else 1
    return math.prod(factor.shape) // (factor.size(1) if "transpose" in op else factor.size(0))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, torch.Tensor) and not value.is_floating_point())


def _has_fractions(factor: torch.Tensor) -> bool:
    return bool((factor != factor.round()).any())


def _at_scale_of(x: Any, scale: int) -> torch.Tensor:
    """Return x's share at a scale that is not below its own. Local."""
    share: torch.Tensor = x.share
    return share if x.encoder.scale == scale else share * (scale // x.encoder.scale)


def _made(share: torch.Tensor, encoder: Any) -> Any:
    result = Arithmetic(src=SENTINEL)
    result.share, result.encoder = share, encoder
    return result


def _with_public_sum(x: Any, op: str, y: Any) -> Any:
    encoder = x.encoder
    if encoder.scale == 1 and not _is_whole(y) and _has_fractions(_factor(y)):
        encoder = Encoder()
    value = encoder.encode(y, device=x.share.device)
    share, value = torch.broadcast_tensors(_at_scale_of(x, encoder.scale), value)  # type: ignore[no-untyped-call]
    # The party that adds nothing must not share its tensor with the operand.
    return _made(getattr(share, op)(value) if current().rank == 0 else share.clone(), encoder)


def _with_public_product(x: Any, op: str, y: Any, **options: Any) -> Any:
    """Return the product with a public value, whose scale is its own. Whole numbers stay whole if they can."""
    if isinstance(y, int):
        _check_size(x, abs(y))
        return _made(x.share * y, x.encoder)
    if _is_whole(y):
        if y.device.type != "meta" and y.numel():
            _check_size(x, max(int(y.max()), -int(y.min())))
        return _made(_ring_product(op, x.share, y.long(), **options), x.encoder)
    factor = _factor(y)
    encoder = Encoder() if x.encoder.scale == 1 and _has_fractions(factor) else x.encoder

    def apply(share: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
        return _ring_product(op, share, integers, **options)

    share = _at_scale_of(x, encoder.scale)
    return _made(times_public(share, factor, apply, _n_terms(op, share, factor)), encoder)


def _ring_product(op: str, share: torch.Tensor, integers: torch.Tensor, **options: Any) -> torch.Tensor:
    if op == "mul" or (op == "matmul" and (share.dim() == 1 or integers.dim() == 1)):
        product: torch.Tensor = getattr(torch, op)(share, integers)
        return product
    return triple_spec(op, share.size(), integers.size(), **options).multiply(share, integers)


def _with_shared(x: Any, op: str, y: Any, **options: Any) -> Any:
    low, high = sorted((x.encoder, y.encoder), key=lambda encoder: encoder.scale)
    if op in ("add", "sub"):
        return _made(getattr(_at_scale_of(x, high.scale), op)(_at_scale_of(y, high.scale)), high)
    product = multiply(op, x, y, **options).share
    # One factor's scale stays in the product.
    return _made(truncate(product, low.scale.bit_length() - 1), high)


def _combine(self: Any, y: Any, op: str, inplace: bool = False, **options: Any) -> Any:
    if isinstance(y, Arithmetic):
        result = _with_shared(self, op, y, **options)
    elif _is_public(y):
        result = (_with_public_sum if op in ("add", "sub") else _with_public_product)(self, op, y, **options)
    else:
        raise TypeError(f"Cannot {op} {type(y)} with {type(self)}")
    return _put(self, result) if inplace else result


def _put(self: Any, result: Any) -> Any:
    """Write a result into a tensor's own memory, so that its views see it, as torch does."""
    if self.share.shape == result.share.shape and self.encoder.scale == result.encoder.scale:
        self.share.copy_(result.share)
    else:
        self.share, self.encoder = result.share, result.encoder
    return self


def _divided(self: Any, divisor: Any) -> Any:
    """Divide by a public number or tensor: the result is exact to a few units in the last place.

    Raises:
        RangeError: the divisor is 0, NaN or infinite, or too close to 0.
    """
    if not _is_public(divisor):
        raise ProtocolError(f"division of a shared tensor by {type(divisor).__name__} is not supported")
    factor = torch.as_tensor(divisor, dtype=torch.float64)
    if factor.device.type != "meta" and bool((factor == 0).any()):
        raise RangeError("a shared tensor is divided by a public 0", "check what the program divides by")
    return _with_public_product(self, "mul", factor.reciprocal())


def _divided_in_place(self: Any, divisor: Any) -> Any:
    return _put(self, _divided(self, divisor))


def _encoded(self: Any, encoder: Any) -> Any:
    """Return the tensor at the scale of another encoder."""
    if self.encoder.scale <= encoder.scale:
        return _made(_at_scale_of(self, encoder.scale).clone(), encoder)
    return _made(truncate(self.share, (self.encoder.scale // encoder.scale).bit_length() - 1), encoder)


def _encoded_in_place(self: Any, encoder: Any) -> Any:
    if self.encoder.scale != encoder.scale:
        result = _encoded(self, encoder)
        self.share, self.encoder = result.share, encoder
    return self


def _squared(self: Any) -> Any:
    return _made(truncate(square(self).share, self.encoder.scale.bit_length() - 1), self.encoder)


def _reveal(self: Any, dst: int | None = None) -> Any:
    """Open a tensor to both parties, or to party `dst`, without its scale. The party's `watch` hears of it first."""
    current().watch("reveal")
    return current().open([self.share.clone()], xor=isinstance(self, Binary), dst=dst)[0]


def _reveal_batch(tensors: Any, dst: int | None = None) -> Any:
    if not isinstance(tensors, list):
        return tensors.reveal(dst=dst)
    current().watch("reveal_batch")
    opened = current().open([tensor.share.clone() for tensor in tensors], xor=isinstance(tensors[0], Binary), dst=dst)
    return None if dst not in (None, current().rank) else opened


def _get_plain_text(self: Any, dst: int | None = None) -> Any:
    """Open a tensor as numbers. The party that does not learn them gets None."""
    current().watch("get_plain_text")
    value = current().open([self.share.clone()], xor=isinstance(self, Binary), dst=dst)[0]
    return self.encoder.decode(value)


def _hidden(self: Any) -> str:
    return f"{type(self).__name__}({tuple(self.share.shape)}, hidden)"


def _method(op: str, inplace: bool) -> Any:
    def method(self: Any, y: Any, **options: Any) -> Any:
        return _combine(self, y, op, inplace, **options)

    return method


def patch() -> None:
    """Put these methods in the place of CrypTen's."""
    Encoder.encode, Encoder.decode = encode, decode
    Arithmetic.__init__, Binary.__init__ = _make_arithmetic, _make_binary
    Arithmetic._arithmetic_function = _combine
    for op in ("add", "sub", "mul"):
        for names, inplace in ((f"{op} __{op}__", False), (f"{op}_ __i{op}__", True)):
            for name in names.split():
                setattr(Arithmetic, name, _method(op, inplace))
    for name in ("__radd__", "__rmul__"):
        setattr(Arithmetic, name, getattr(Arithmetic, name.replace("__r", "__")))
    for name in ("div", "__div__", "__truediv__"):
        setattr(Arithmetic, name, _divided)
    Arithmetic.div_ = Arithmetic.__itruediv__ = _divided_in_place
    Arithmetic.encode, Arithmetic.encode_ = _encoded, _encoded_in_place
    Arithmetic.square = _squared
    Arithmetic.square_ = lambda self: _put(self, _squared(self))
    for kind in (Arithmetic, Binary):
        kind.reveal, kind.get_plain_text = _reveal, _get_plain_text
        kind.reveal_batch = staticmethod(_reveal_batch)
        kind.__repr__ = _hidden
    crypten.mpc.MPCTensor.__repr__ = _hidden
