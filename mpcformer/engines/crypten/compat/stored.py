"""Shares and plaintext tensors in safetensors files, in place of CrypTen's `torch.save`, whose files are unpickled.

A file of shares is this party's half: it tells nothing without the other one. Its metadata says how each share is
encoded.
"""

import json
from collections import OrderedDict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current
from mpcformer.errors import ProtocolError, UserInputError

# The name of the only tensor of a file that is no dictionary.
ALONE = "tensor"
KEY = "crypten"
# Programs that name torch's functions get those of this module.
TORCH_SAVE, TORCH_LOAD = torch.save, torch.load  # noqa: TID251


def _describe(value: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    if isinstance(value, crypten.mpc.MPCTensor):
        kind = {"shared": value.ptype.name, "precision": value.encoder._precision_bits}
        return value.share.contiguous(), kind
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous(), {}
    raise ProtocolError(f"objects of {type(value).__name__} are not saved: save their tensors, or their state_dict()")


def save_shares(obj: Any, f: Any) -> None:
    """Save a tensor, a shared tensor or a dictionary of them, such as a model's `state_dict()`.

    Args:
        obj: what to save.
        f: a path, or a file open for writing bytes.

    Raises:
        ProtocolError: something in it is no tensor.
    """
    parts = {name: _describe(value) for name, value in (obj if isinstance(obj, dict) else {ALONE: obj}).items()}
    about = {
        "alone": not isinstance(obj, dict),
        "tensors": {name: kind for name, (_, kind) in parts.items()},
        # The version numbers that torch keeps beside a state_dict.
        "modules": getattr(obj, "_metadata", None),
    }
    raw = save_bytes({name: tensor.clone() for name, (tensor, _) in parts.items()}, {KEY: json.dumps(about)})
    if hasattr(f, "write"):
        f.write(raw)
    else:
        with open(f, "wb") as file:  # noqa: PTH123 (a path of any kind)
            file.write(raw)


def load_shares(f: Any) -> Any:
    """Load what `save_shares` saved.

    Raises:
        UserInputError: the file is of another format.
    """
    if hasattr(f, "read"):
        raw = f.read()
    else:
        with open(f, "rb") as file:  # noqa: PTH123 (a path of any kind)
            raw = file.read()
    try:
        tensors = load_bytes(raw)
        length = int.from_bytes(raw[:8], "little")
        about = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][KEY])
        found = OrderedDict((name, _restored(tensors[name], kind)) for name, kind in about["tensors"].items())
        if about["modules"] is not None:
            found._metadata = OrderedDict(about["modules"])  # type: ignore[attr-defined]
        return found[ALONE] if about["alone"] else found
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise UserInputError(
            "the file was not saved by crypten.save of this project", "load it as what it is, and share it again"
        ) from None


def _restored(tensor: torch.Tensor, kind: dict[str, Any]) -> Any:
    if not kind:
        return tensor
    ptype = crypten.mpc.ptype[kind["shared"]]
    return crypten.mpc.MPCTensor.from_shares(tensor, precision=int(kind["precision"]), ptype=ptype)


def _save(obj: Any, f: Any, save_closure: Any = save_shares, **options: Any) -> None:
    """Save this party's shares, and wait for the other party."""
    _writer(save_closure)(obj, f, **options)
    current().communicator.barrier()


def _load(f: Any, load_closure: Any = load_shares, **options: Any) -> Any:
    """Load this party's shares."""
    if "src" in options:
        raise SyntaxError("src: crypten.load reads this party's own shares; crypten.load_from_party takes a party")
    return _reader(load_closure)(f, **options)


def _save_from_party(obj: Any, f: Any, src: int = 0, save_closure: Any = save_shares, **options: Any) -> None:
    """Save a plaintext tensor at party `src`."""
    if crypten.is_encrypted_tensor(obj):
        raise NotImplementedError("a shared tensor is no one party's to save: crypten.save writes each party's shares")
    assert src in (0, 1), "Save failed: src must be an integer in [0, world_size)"
    if current().rank == src:
        _writer(save_closure)(obj, f, **options)
    current().communicator.barrier()


def _load_from_party(
    f: Any = None,
    preloaded: Any = None,
    encrypted: bool = False,
    model_class: Any = None,
    src: int = 0,
    load_closure: Any = load_shares,
    **options: Any,
) -> Any:
    """Share the tensor that party `src` has in a file or in memory. The other party learns its shape."""
    if encrypted:
        raise NotImplementedError("encrypted: crypten.load reads the shares that crypten.save wrote")
    assert src in (0, 1), "Load failed: src must be in [0, world_size)"
    comm = current().communicator
    found: Any = None
    if current().rank == src:
        assert (f is None) != (preloaded is None), "Exactly one of f and preloaded must not be None"
        found = preloaded if f is None else _reader(load_closure)(f, **options)
    size = comm.broadcast_obj(found.size() if isinstance(found, torch.Tensor) else torch.Size([]), src)
    is_tensor = comm.broadcast_obj(torch.Size([int(isinstance(found, torch.Tensor))]), src) == (1,)
    if not is_tensor:
        raise TypeError("a file for load_from_party holds one tensor: share a model by its parameters")
    result = crypten.cryptensor(found if found is not None else torch.zeros(size), src=src)
    result.src = src
    return result


def _writer(closure: Any) -> Any:
    return save_shares if closure is TORCH_SAVE else closure


def _reader(closure: Any) -> Any:
    return load_shares if closure is TORCH_LOAD else closure


def patch() -> None:
    """Put these functions in the place of CrypTen's."""
    crypten.save, crypten.load = _save, _load
    crypten.save_from_party, crypten.load_from_party = _save_from_party, _load_from_party
