"""The only file that patches CrypTen 0.4.1: how it is imported, talks, draws, multiplies, truncates and encodes.

It replaces these parts, for these reasons:
- import: `torch.onnx._internal.registration` is gone from torch 2.13; an empty stand-in lets CrypTen import.
- communicator: torch.distributed sends in clear to whoever answers; `ChannelCommunicator` uses an authenticated link.
- provider: CrypTen's default lets party 0 see every triple; `DealerProvider` takes correlations from a dealer's store.
- randomness: MT19937 has 32 effective seed bits; here every share comes from `mpcformer.ring.random`.
- truncation: CrypTen's two-party division is local and destroys an element with probability |x| / 2^64; ours is exact.
- encoding: CrypTen encodes NaN and overflow silently, truncates fractions, and decodes some negative numbers one whole
  unit off; ours refuses what does not fit, and rounds.

A party's state (rank, channel, correlations) belongs to a thread, because tests run both parties in one process.
"""

import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import Dealt, Request
from mpcformer.errors import ProtocolError, RangeError
from mpcformer.ring.random import Stream, derive_key

FRAC_BITS = 16
# Operands below 2^(62 - 2 f) keep the sum of a product inside the range of the exact truncation.
MAX_ENCODED = float(2 ** (62 - FRAC_BITS))


def _import_crypten() -> Any:
    name = "torch.onnx._internal.registration"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.registry = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    level = logging.getLogger().level
    import crypten

    logging.getLogger().setLevel(level)
    return crypten


crypten: Any = _import_crypten()
_local = threading.local()


class PartyState:
    """The party of one session that CrypTen's globals stand for in this thread.

    Args:
        rank: 0 or 1.
        channel: the channel to the other party; None while planning.
        store: the correlations, an object with `take(request) -> Dealt`.
        zero_key: 16 bytes that both parties and nobody else know, for pseudo-random sharings of zero.
    """

    def __init__(self, *, rank: int, channel: Channel | None, store: Any, zero_key: bytes) -> None:
        self.rank = rank
        self.communicator = ChannelCommunicator(rank, channel)
        self.store = store
        streams = [Stream(derive_key(zero_key, "zero sharing", i)) for i in range(2)]
        # In a ring of two, "prev" and "next" are the same neighbour: party 0's next is party 1's prev.
        self.generators = {"prev": streams[rank], "next": streams[1 - rank]}

    def use(self, channel: Channel, store: Any) -> None:
        """Go on with another channel to the same party, and with other correlations."""
        self.communicator, self.store = ChannelCommunicator(self.rank, channel), store


def current() -> PartyState:
    """Return this thread's party.

    Raises:
        ProtocolError: no party is active, so CrypTen has nobody to talk to.
    """
    state: PartyState | None = getattr(_local, "state", None)
    if state is None:
        raise ProtocolError("CrypTen was called outside `active(party)`")
    return state


@contextmanager
def active(state: PartyState) -> Iterator[None]:
    """Make `state` this thread's party."""
    before = getattr(_local, "state", None)
    _local.state = state
    try:
        with crypten.no_grad():
            yield
    finally:
        _local.state = before


class ChannelCommunicator:
    """The part of CrypTen's Communicator that two-party inference uses, on a Channel, or on none while planning."""

    BYTES_PER_ELEMENT = 8

    def __init__(self, rank: int, channel: Channel | None) -> None:
        self._rank = rank
        self._channel = channel

    @classmethod
    def is_initialized(cls) -> bool:
        """Return whether this thread has a party."""
        return getattr(_local, "state", None) is not None

    @classmethod
    def get(cls) -> "ChannelCommunicator":
        """Return this thread's communicator."""
        return current().communicator

    @classmethod
    def initialize(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse CrypTen's own initialisation, which would start torch.distributed."""
        raise ProtocolError("crypten.init() is not used: parties are made by PartyState")

    @classmethod
    def shutdown(cls) -> None:
        """Do nothing: whoever made a channel closes it."""

    def get_world_size(self) -> int:
        """Return 2; the dealer is no party to CrypTen."""
        return 2

    def get_rank(self) -> int:
        """Return this party's rank, 0 or 1."""
        return self._rank

    def all_reduce(self, value: Any, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        """Open tensors: exchange shares and combine them by sum or XOR. One round, for one tensor or several."""
        mine: list[torch.Tensor] = list(value) if batched else [value]
        combine = torch.bitwise_xor if op == torch.distributed.ReduceOp.BXOR else torch.add
        if self._channel is None:
            opened = [torch.empty_like(tensor) for tensor in mine]
        else:
            self._channel.send(mine)
            theirs = self._channel.receive([Spec.of(tensor) for tensor in mine])
            opened = [combine(a, b) for a, b in zip(mine, theirs, strict=True)]
        return opened if batched else opened[0]

    def reduce(self, value: Any, dst: int, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        """Open tensors to party `dst` only, by one message; the other party gets None."""
        mine: list[torch.Tensor] = list(value) if batched else [value]
        combine = torch.bitwise_xor if op == torch.distributed.ReduceOp.BXOR else torch.add
        if self._channel is None:
            opened = [torch.empty_like(tensor) for tensor in mine]
        elif self._rank != dst:
            self._channel.send(mine)
            return None
        else:
            theirs = self._channel.receive([Spec.of(tensor) for tensor in mine])
            opened = [combine(a, b) for a, b in zip(mine, theirs, strict=True)]
        return opened if batched else opened[0]

    def __getattr__(self, name: str) -> NoReturn:
        raise ProtocolError(f"CrypTen's communicator.{name} is not part of two-party inference")


class DealerProvider:
    """A TupleProvider for CrypTen that takes tuples from the session's correlation store."""

    NAME = "DEALER"

    def _take(self, kind: str, shapes: list[Any], *, op: str = "", bits: int = 0) -> Dealt:
        request = Request(kind, tuple(tuple(int(n) for n in shape) for shape in shapes), op=op, bits=bits)
        dealt: Dealt = current().store.take(request)
        return dealt

    def generate_additive_triple(
        self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Return shares of a, b and a op b."""
        return tuple(_arithmetic(share) for share in self._take("additive_triple", [size0, size1], op=op).shares)

    def square(self, size: Any, device: Any = None) -> Any:
        """Return shares of r and r^2."""
        return tuple(_arithmetic(share) for share in self._take("square_pair", [size]).shares)

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> Any:
        """Return XOR shares of a, b and a & b."""
        return tuple(_binary(share) for share in self._take("binary_triple", [size0, size1]).shares)

    def B2A_rng(self, size: Any, device: Any = None) -> Any:  # noqa: N802 (CrypTen's name)
        """Return a random bit, shared additively and by XOR."""
        bit, arithmetic = self._take("bit_pair", [size]).shares
        return _arithmetic(arithmetic), _binary(bit)

    def truncation(self, size: Any, bits: int) -> list[torch.Tensor]:
        """Return shares of r, of r >> bits and of the top bit of r."""
        return self._take("truncation", [size], bits=bits).shares

    def __getattr__(self, name: str) -> NoReturn:
        raise ProtocolError(f"CrypTen's provider.{name} is not part of two-party inference")


def _arithmetic(share: torch.Tensor) -> Any:
    return crypten.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: torch.Tensor) -> Any:
    return crypten.mpc.primitives.BinarySharedTensor.from_shares(share)


PROVIDER = DealerProvider()


class _Generators:
    """A stand-in for `crypten.generators`: the zero-sharing streams of this thread's party, whatever the device."""

    def __getitem__(self, name: str) -> "_Generators._Of":
        if name not in ("prev", "next"):
            raise ProtocolError(f"CrypTen's {name!r} generator is not part of two-party inference")
        return self._Of(name)

    class _Of:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, device: torch.device) -> Stream:
            return current().generators[self._name]


def _random_ring_element(
    size: Any, ring_size: int = 2**64, generator: Stream | None = None, **kwargs: Any
) -> torch.Tensor:
    if not isinstance(generator, Stream) or ring_size != 2**64:
        raise ProtocolError("CrypTen asked for randomness outside the party's own streams")
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(tuple(size), dtype=torch.int64, device="meta")
    return generator.int64(tuple(size))


def _random_bits(
    size: Any, bitlength: int | None = None, generator: Stream | None = None, **kwargs: Any
) -> torch.Tensor:
    if bitlength not in (None, 64):
        raise ProtocolError(f"CrypTen asked for {bitlength}-bit randomness, which two-party inference does not use")
    return _random_ring_element(size, generator=generator, **kwargs)


def truncate(share: torch.Tensor, bits: int) -> torch.Tensor:
    """Return shares of z >> bits from shares of z, exact to one unit in the last place, never worse.

    Ideal function: floor(z / 2^bits), or that plus one; elementwise over Z_2^64.
    Shapes: share (...), result (...).
    Scale: 2^g -> 2^(g - bits).
    Range and error: -2^62 <= z < 2^62; 1 ulp. Outside the range the result is wrong by 2^(64 - bits).
    Cost for n elements: 1 round, 8 n bytes each way, 16 n dealer bytes.
    Source: Escudero, Ghosh, Keller, Rachuri, Scholl, CRYPTO 2020, section 5, with a shared top bit against the wrap.
    """
    state = current()
    r, r_shifted, r_msb = PROVIDER.truncation(share.shape, bits)
    offset = 1 << 62
    masked = share + r
    if state.rank == 0:
        masked = masked + offset
    opened: torch.Tensor = state.communicator.all_reduce(masked)
    # The sum z + 2^62 + r wrapped past 2^64 exactly when the top bit of r is set and that of the opened sum is not.
    may_wrap = (opened >= 0).to(torch.int64)
    result: torch.Tensor = (r_msb * may_wrap << (64 - bits)) - r_shifted
    if state.rank == 0:
        result += (opened >> bits) & ((1 << (64 - bits)) - 1)
        result -= 1 << (62 - bits)
    return result


def _div_(self: Any, divisor: Any) -> Any:
    """Divide in place: truncate exactly by a public power of two, multiply by the inverse of other public numbers."""
    if isinstance(divisor, float) and divisor == int(divisor):
        divisor = int(divisor)
    if isinstance(divisor, int):
        if divisor < 1 or divisor & (divisor - 1):
            return self.mul_(1.0 / divisor)
        if divisor > 1:
            self.share = truncate(self.share, divisor.bit_length() - 1)
        return self
    if isinstance(divisor, float):
        return self.mul_(1.0 / divisor)
    raise ProtocolError(f"division of a shared tensor by {type(divisor).__name__} is not supported")


def _encode(self: Any, x: Any, device: Any = None) -> Any:
    """Encode numbers to the nearest multiple of 1/scale, and refuse what does not fit."""
    if isinstance(x, crypten.CrypTensor):
        return x
    scale: int = self._scale
    if isinstance(x, int):
        return torch.tensor(x * scale, dtype=torch.int64, device=device)
    tensor = torch.as_tensor(x, device=device)
    if not tensor.is_floating_point():
        return tensor.to(torch.int64) * scale
    if tensor.device.type != "meta":
        if not bool(torch.isfinite(tensor).all()):
            raise RangeError("a tensor to be encoded holds NaN or infinity", "check the model's weights and inputs")
        if tensor.numel() and float(tensor.abs().max()) >= MAX_ENCODED:
            raise RangeError(f"a tensor to be encoded exceeds {MAX_ENCODED:.0f}", "fixed point cannot carry it")
    return (tensor.double() * scale).round().to(torch.int64)


def _decode(self: Any, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Decode ring elements to float32, exactly below 2^24."""
    return None if tensor is None else (tensor.double() / self._scale).float()


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise ProtocolError(f"{what} is not secure and never used")

    return refused


def _patch() -> None:
    primitives, mpc = crypten.mpc.primitives, crypten.mpc
    crypten.communicator.DistributedCommunicator = ChannelCommunicator
    crypten.communicator.InProcessCommunicator = ChannelCommunicator
    setattr(mpc, "__SUPPORTED_PROVIDERS", {DealerProvider.NAME: PROVIDER})
    mpc.get_default_provider = lambda: PROVIDER
    crypten.cfg.mpc.provider = DealerProvider.NAME
    crypten.cfg.encoder.precision_bits = FRAC_BITS
    crypten.generators = _Generators()
    for module in (
        primitives.arithmetic,
        primitives.binary,
        mpc.provider.tfp_provider,
        mpc.provider.ttp_provider,
        crypten.common.rng,
    ):
        for name, ours in (
            ("generate_random_ring_element", _random_ring_element),
            ("generate_kbit_random_tensor", _random_bits),
        ):
            if hasattr(module, name):
                setattr(module, name, ours)
    for owner, name in ((mpc.provider.TrustedFirstParty, "TFP"), (mpc.provider.TrustedThirdParty, "TTP")):
        owner.__init__ = _refuse(f"CrypTen's {name} provider")
    crypten.init = _refuse("crypten.init (torch.distributed, MT19937)")
    primitives.ArithmeticSharedTensor.div_ = _div_
    # A share must not show itself.
    primitives.ArithmeticSharedTensor.__repr__ = lambda self: (
        f"ArithmeticSharedTensor({tuple(self.share.shape)}, hidden)"
    )
    primitives.BinarySharedTensor.__repr__ = lambda self: f"BinarySharedTensor({tuple(self.share.shape)}, hidden)"
    mpc.MPCTensor.__repr__ = lambda self: f"MPCTensor({tuple(self.share.shape)}, hidden)"
    crypten.encoder.FixedPointEncoder.encode = _encode
    crypten.encoder.FixedPointEncoder.decode = _decode


_patch()
