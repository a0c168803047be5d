"""CrypTen 0.4.1, patched: the one door to it. Whoever imports this package gets a CrypTen with these parts replaced:

- import (`library`): `torch.onnx._internal.registration` is gone from torch 2.13.
- communicator (`communicator`): torch.distributed sends in clear to whoever answers, and unpickles what arrives.
- provider and randomness (`provider`): CrypTen's default lets party 0 see every triple; MT19937 has 32 seed bits.
- truncation, encoding, public factors (`fixed_point`): CrypTen's numbers are wrong now and then, and say nothing.
- products (`products`) and tensors (`tensors`): only masked values are opened unless a program opens one by name.
- comparisons (`comparisons`): by keys, in one round, where a program chooses them.
- gradients (`autograd`): a flag for each thread, and masks of dropout from the CSPRNG.
- settings (`settings`): each thread has its own, since CrypTen overrides them in the middle of its functions.
- files (`stored`): safetensors in place of pickles.
- models (`models`): `from_pytorch` with the pinned torch.

`party` says whom CrypTen's globals stand for in a thread.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from mpcformer.engines.crypten.compat import autograd, comparisons, models, products, settings, stored, tensors
from mpcformer.engines.crypten.compat.communicator import ChannelCommunicator
from mpcformer.engines.crypten.compat.fixed_point import FRAC_BITS, MAX_ENCODED, truncate
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import PartyState, active, agree_on_zero_key, current
from mpcformer.engines.crypten.compat.provider import (
    PROVIDER,
    DealerProvider,
    Generators,
    random_bits,
    random_ring_element,
)
from mpcformer.errors import ProtocolError

__all__ = [
    "FRAC_BITS",
    "MAX_ENCODED",
    "ChannelCommunicator",
    "DealerProvider",
    "PartyState",
    "active",
    "agree_on_zero_key",
    "crypten",
    "current",
    "truncate",
]


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
    crypten.generators = Generators()
    for module in (
        primitives.arithmetic,
        primitives.binary,
        mpc.provider.tfp_provider,
        mpc.provider.ttp_provider,
        crypten.common.rng,
    ):
        for name, ours in (
            ("generate_random_ring_element", random_ring_element),
            ("generate_kbit_random_tensor", random_bits),
        ):
            if hasattr(module, name):
                setattr(module, name, ours)
    for owner, name in ((mpc.provider.TrustedFirstParty, "TFP"), (mpc.provider.TrustedThirdParty, "TTP")):
        owner.__init__ = _refuse(f"CrypTen's {name} provider")
    crypten.init = _refuse("crypten.init (torch.distributed, MT19937)")
    crypten.manual_seed = _refuse("crypten.manual_seed (MT19937)")
    for part in (settings, autograd, products, tensors, comparisons, stored, models):
        part.patch()


_patch()
