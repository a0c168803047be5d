"""CrypTen's Communicator on the channel between the owners.

CrypTen's own sends in clear to whoever answers, by torch.distributed, and unpickles what arrives. This one uses an
authenticated link, and carries tensors, and objects of JSON. What a program sends with it is not masked, so the
party's `watch` hears of each such message first. Protocols open their masked values by `PartyState.open` instead.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from mpcformer.channel import Spec
from mpcformer.correlations.base import MAX_ELEMENTS
from mpcformer.engines.crypten.compat.library import crypten
from mpcformer.engines.crypten.compat.party import current, has_party
from mpcformer.errors import ProtocolError

N_PARTIES = 2
# An object that arrives is refused if it is longer; nothing that CrypTen sends comes near.
MAX_OBJECT_BYTES = 1 << 20
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
}


class ChannelCommunicator:
    """The methods of CrypTen's Communicator between two parties.

    Args:
        state: the party that it belongs to.
    """

    BYTES_PER_ELEMENT = 8

    def __init__(self, state: Any) -> None:
        self._state = state
        self._name = f"rank{state.rank}"
        self._n_operations = 0
        self._before = (0, 0, 0.0)

    @classmethod
    def is_initialized(cls) -> bool:
        """Return whether this thread has a party."""
        return has_party()

    @classmethod
    def get(cls) -> "ChannelCommunicator":
        """Return this thread's communicator."""
        found: ChannelCommunicator = current().communicator
        return found

    @classmethod
    def initialize(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse CrypTen's own initialisation, which would start torch.distributed."""
        raise ProtocolError("crypten.init() is not used: parties are made by PartyState")

    @classmethod
    def shutdown(cls) -> None:
        """Do nothing: whoever made a channel closes it."""

    @property
    def rank(self) -> int:
        """This party's rank, 0 or 1."""
        rank: int = self._state.rank
        return rank

    @property
    def world_size(self) -> int:
        """2; the dealer is no party to CrypTen."""
        return N_PARTIES

    def get_world_size(self) -> int:
        """Return 2; the dealer is no party to CrypTen."""
        return N_PARTIES

    def get_rank(self) -> int:
        """Return this party's rank, 0 or 1."""
        return self.rank

    def set_name(self, name: str) -> None:
        """Set the party's name for its own logs."""
        assert isinstance(name, str), f"Improper name provided to process on rank {self.rank}"
        self._name = name

    def get_name(self) -> str:
        """Return the party's name."""
        return self._name

    def all_reduce(self, value: Any, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        """Exchange tensors and combine them by sum or XOR. One round, for one tensor or several."""
        return self._combined("all_reduce", value, None, op, batched)

    def reduce(self, value: Any, dst: int, op: Any = None, async_op: bool = False, batched: bool = False) -> Any:
        """Combine tensors at party `dst` only, by one message; the other party gets None."""
        return self._combined("reduce", value, dst, op, batched)

    def _combined(self, operation: str, value: Any, dst: int | None, op: Any, batched: bool) -> Any:
        _require(op in (None, torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.BXOR), operation, "this op")
        self._state.watch(f"communicator.{operation}")
        mine: list[torch.Tensor] = list(value) if batched else [value]
        opened = self._state.open(mine, xor=op == torch.distributed.ReduceOp.BXOR, dst=dst)
        if dst is not None and dst != self.rank:
            return None
        return opened if batched else opened[0]

    def send(self, tensor: torch.Tensor, dst: int) -> None:
        """Send a tensor to the other party."""
        self._begin("send", dst)
        self._send([tensor])

    def recv(self, tensor: torch.Tensor, src: int | None = None) -> torch.Tensor:
        """Receive a tensor of the same type and shape as `tensor`."""
        self._begin("recv", 1 - self.rank if src is None else src)
        return self._into([torch.empty_like(tensor)])[0]

    def broadcast(self, value: Any, src: int, group: Any = None, batched: bool = False) -> Any:
        """Copy party `src`'s tensors into the other party's."""
        self._begin("broadcast")
        tensors = list(value) if batched else [value]
        if self.rank == src:
            self._send(tensors)
        else:
            self._into(tensors)
        return value

    def scatter(
        self, scatter_list: Sequence[torch.Tensor], src: int, size: Any = None, device: Any = None
    ) -> torch.Tensor:
        """Give each party its tensor of party `src`'s list. The other party tells the size, or has such a list."""
        self._begin("scatter")
        if self.rank == src:
            self._send([scatter_list[1 - src]])
            return scatter_list[src]
        like = torch.empty(tuple(size), dtype=torch.int64) if size is not None else scatter_list[self.rank]
        return self._into([like.clone()])[0]

    def gather(self, tensor: torch.Tensor, dst: int) -> list[Any]:
        """Collect both parties' tensors at party `dst`; the other one gets [None]."""
        self._begin("gather")
        if self.rank != dst:
            self._send([tensor])
            return [None]
        return self._in_order(tensor, self._into([tensor.clone()])[0])

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Collect both parties' tensors at both."""
        self._begin("all_gather")
        self._send([tensor])
        return self._in_order(tensor.clone(), self._into([tensor.clone()])[0])

    def _in_order(self, mine: torch.Tensor, theirs: torch.Tensor) -> list[torch.Tensor]:
        return [mine, theirs] if self.rank == 0 else [theirs, mine]

    def barrier(self) -> None:
        """Wait for the other party. Nothing is told, so no declaration is needed."""
        self._state.open([torch.zeros(1, dtype=torch.int64)])

    def send_obj(self, obj: Any, dst: int, group: Any = None) -> None:
        """Send a tensor, a shape, or what JSON carries. No other object is sent, and none is unpickled."""
        self._begin("send_obj", dst)
        self._send_object(obj)

    def recv_obj(self, src: int, group: Any = None) -> Any:
        """Receive what `send_obj` sends."""
        self._begin("recv_obj", src)
        return self._receive_object()

    def broadcast_obj(self, obj: Any, src: int, group: Any = None) -> Any:
        """Return party `src`'s object at both parties. A size, and an object of zeros, are public."""
        if not (obj is None or isinstance(obj, torch.Size)):
            self._state.watch("communicator.broadcast_obj")
        self._n_operations += 1
        if self.rank != src:
            return self._receive_object()
        self._send_object(obj)
        return obj

    def _begin(self, operation: str, peer: int | None = None) -> None:
        _require(peer in (None, 1 - self.rank), operation, f"party {peer} as the peer of party {self.rank}")
        self._state.watch(f"communicator.{operation}")
        self._n_operations += 1

    def _send(self, tensors: Sequence[torch.Tensor]) -> None:
        message = [_bytes_of(tensor) for tensor in tensors if tensor.numel()]
        if message and self._state.channel is not None:
            self._state.channel.send(message)

    def _into(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Receive a message into tensors."""
        filled = [tensor for tensor in tensors if tensor.numel()]
        if filled and self._state.channel is not None:
            arrived = self._state.channel.receive([Spec.of(_bytes_of(tensor)) for tensor in filled])
            for tensor, raw in zip(filled, arrived, strict=True):
                if tensor.device.type != "meta":
                    tensor.data.copy_(raw.view(tensor.dtype).view(tensor.shape) if raw.dtype == torch.uint8 else raw)
        return list(tensors)

    def _send_object(self, obj: Any) -> None:
        text, tensors = _packed(obj)
        raw = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        for message in (torch.tensor([raw.numel()]), raw, *tensors):
            self._send([message])

    def _receive_object(self) -> Any:
        length = int(self._into([torch.zeros(1, dtype=torch.int64)])[0])
        if not 0 < length <= MAX_OBJECT_BYTES:
            raise ProtocolError(f"the peer announced an object of {length} bytes")
        raw = self._into([torch.zeros(length, dtype=torch.uint8)])[0]
        found, is_zero = _unpacked(bytes(raw.tolist()))
        return found if is_zero or not isinstance(found, torch.Tensor) else self._into([found])[0]

    @property
    def comm_rounds(self) -> int:
        """The messages and openings since the last reset, while CrypTen's `communicator.verbose` is on."""
        return self._counted()[0] - self._before[0] if self._verbose() else 0

    @property
    def comm_bytes(self) -> int:
        """The bytes sent and received since the last reset, while CrypTen's `communicator.verbose` is on."""
        return self._counted()[1] - self._before[1] if self._verbose() else 0

    @property
    def comm_time(self) -> float:
        """The seconds of waiting since the last reset, while CrypTen's `communicator.verbose` is on."""
        return self._counted()[2] - self._before[2] if self._verbose() else 0.0

    def _counted(self) -> tuple[int, int, float]:
        counters = self._state.channel.counters
        n_bytes = counters.bytes_sent + counters.bytes_received
        return self._n_operations + self._state.n_openings, n_bytes, counters.seconds_waited

    def reset_communication_stats(self) -> None:
        """Count from here on."""
        self._before = self._counted()

    def get_communication_stats(self) -> dict[str, float]:
        """Return rounds, bytes and seconds since the last reset."""
        return {"rounds": self.comm_rounds, "bytes": self.comm_bytes, "time": self.comm_time}

    def print_communication_stats(self) -> None:
        """Log the counts."""
        for name, value in self.get_communication_stats().items():
            crypten.log(f"{name}: {value}")

    @staticmethod
    def _verbose() -> bool:
        return bool(crypten.cfg.communicator.verbose)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ProtocolError(f"CrypTen's communicator.{name} is not part of two-party computation")


def _require(condition: bool, operation: str, what: str) -> None:
    if not condition:
        raise ProtocolError(f"communicator.{operation}: {what} is not part of two-party computation")


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor, which may change while it is sent, as the channel carries it: int64, or bytes."""
    if tensor.dtype == torch.int64:
        return tensor.detach().clone()
    return torch.frombuffer(bytearray(tensor.detach().numpy().tobytes()), dtype=torch.uint8)


def _packed(obj: Any) -> tuple[bytes, list[torch.Tensor]]:
    """Return an object as JSON, and the tensors that follow it. A tensor of zeros is sent as its shape alone."""
    tensors: list[torch.Tensor] = []
    if isinstance(obj, torch.Tensor):
        name = str(obj.dtype).removeprefix("torch.")
        _require(name in DTYPES, "send_obj", f"a tensor of {name}")
        is_zero = not bool(obj.any())
        tensors = [] if is_zero else [obj]
        obj = {"tensor": list(obj.shape), "dtype": name, "zeros": is_zero}
    elif isinstance(obj, torch.Size):
        obj = {"size": list(obj)}
    try:
        return json.dumps(obj).encode(), tensors
    except (TypeError, ValueError):
        raise ProtocolError(f"objects of {type(obj).__name__} are not sent: they would have to be unpickled") from None


def _unpacked(text: bytes) -> tuple[Any, bool]:
    """Return what a peer sent, and whether no tensor follows it.

    Raises:
        ProtocolError: it is no JSON of ours.
    """
    try:
        found = json.loads(text)
        if isinstance(found, dict) and set(found) == {"size"}:
            return torch.Size(_sizes(found["size"])), True
        if isinstance(found, dict) and set(found) == {"tensor", "dtype", "zeros"}:
            return torch.zeros(_sizes(found["tensor"]), dtype=DTYPES[found["dtype"]]), found["zeros"] is True
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError("the peer sent an object that is no JSON of ours") from None
    return found, True


def _sizes(found: list[int]) -> list[int]:
    if not all(type(n) is int and n >= 0 for n in found) or math.prod(found) > MAX_ELEMENTS:
        raise ValueError
    return found
