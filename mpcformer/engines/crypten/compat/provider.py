"""Correlations from a dealer's store in place of CrypTen's providers, and the one CSPRNG in place of its generators.

CrypTen's default provider lets party 0 see every triple, and its generators are MT19937, with 32 effective seed bits.
"""

from typing import Any, NoReturn

import torch

from mpcformer.correlations import Dealt, Request
from mpcformer.correlations.beaver import TripleSpec
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current
from mpcformer.errors import ProtocolError
from mpcformer.ring.convolution import CONVOLUTIONS, Convolution
from mpcformer.ring.random import Stream

WORD = 64
# The bits of a uniform number in [0, 1), as float32 has them.
UNIFORM_BITS = 24


class DealerProvider:
    """A TupleProvider for CrypTen that takes tuples from the session's correlation store."""

    NAME = "DEALER"

    def take(self, kind: str, *shapes: Any, **fields: Any) -> list[torch.Tensor]:
        """Return this party's tensors of a correlation over these shapes."""
        sizes = tuple(tuple(int(n) for n in shape) for shape in shapes)
        dealt: Dealt = current().store.take(Request(kind, sizes, **fields))
        return dealt.shares

    def triple(self, spec: TripleSpec) -> list[torch.Tensor]:
        """Return shares of a, b and their product."""
        dealt: Dealt = current().store.take(spec.request())
        return dealt.shares

    def generate_additive_triple(
        self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Return shares of a, b and a op b, as CrypTen's tensors."""
        return tuple(_arithmetic(share) for share in self.triple(triple_spec(op, size0, size1, **kwargs)))

    def square(self, size: Any, device: Any = None) -> Any:
        """Return shares of r and r^2."""
        return tuple(_arithmetic(share) for share in self.take("square_pair", size))

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> Any:
        """Return XOR shares of a, b and a & b."""
        return tuple(_binary(share) for share in self.take("binary_triple", size0, size1))

    def B2A_rng(self, size: Any, device: Any = None) -> Any:  # noqa: N802 (CrypTen's name)
        """Return a random bit, shared additively and by XOR."""
        bit, arithmetic = self.take("bit_pair", size)
        return _arithmetic(arithmetic), _binary(bit)

    def truncation(self, size: Any, bits: int) -> list[torch.Tensor]:
        """Return shares of r, of r >> bits and of the top bit of r."""
        return self.take("truncation", size, bits=bits)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ProtocolError(f"CrypTen's provider.{name} is not part of two-party computation")


def triple_spec(op: str, left: Any, right: Any, **options: Any) -> TripleSpec:
    """Return the triple for CrypTen's product `op` of these sizes, with torch's keywords of a convolution."""
    if options.pop("bias", None) is not None:
        raise ProtocolError(f"{op} takes no bias: add it to the result")
    convolution = Convolution.of(op, **options) if op in CONVOLUTIONS else None
    return TripleSpec(op, tuple(left), tuple(right), convolution)


def _arithmetic(share: torch.Tensor) -> Any:
    return crypten.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: torch.Tensor) -> Any:
    return crypten.mpc.primitives.BinarySharedTensor.from_shares(share)


PROVIDER = DealerProvider()


class Generators:
    """A stand-in for `crypten.generators`: the streams of this thread's party, whatever the device.

    "prev" and "next" make sharings of zero, "local" is known to this party alone, and "global" to both parties.
    """

    def __getitem__(self, name: str) -> "Generators._Of":
        if name not in ("prev", "next", "local", "global"):
            raise ProtocolError(f"CrypTen's {name!r} generator is not part of two-party computation")
        return self._Of(name)

    class _Of:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, device: torch.device) -> Stream:
            return current().generators[self._name]


def random_ring_element(
    size: Any, ring_size: int = 2**WORD, generator: Stream | None = None, **kwargs: Any
) -> torch.Tensor:
    """Return uniform ring elements of a stream; of this party's own where CrypTen names none."""
    return random_bits(size, generator=generator, bitlength=None if ring_size == 2**WORD else -1, **kwargs)


def random_bits(
    size: Any, bitlength: int | None = None, generator: Stream | None = None, **kwargs: Any
) -> torch.Tensor:
    """Return uniform integers of `bitlength` bits of a stream; of this party's own where CrypTen names none."""
    n_bits = WORD if bitlength is None else bitlength
    if not (generator is None or isinstance(generator, Stream)) or not 1 <= n_bits <= WORD:
        raise ProtocolError("CrypTen asked for randomness outside the party's own streams")
    shape = (size,) if isinstance(size, int) else tuple(size)
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(shape, dtype=torch.int64, device="meta")
    stream = generator or current().generators["local"]
    return stream.int64(shape) if n_bits == WORD else stream.bits(shape, n_bits)


def public_uniform(size: Any, device: Any = None) -> torch.Tensor:
    """Return numbers in [0, 1), float32, that both parties know and nobody could foresee."""
    bits = random_bits(size, UNIFORM_BITS, current().generators["global"], device=device)
    return bits.float() / (1 << UNIFORM_BITS)
