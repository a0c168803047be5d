"""Follows every random draw through a private batch, to prove that each message is masked by a draw of its own.

All tensor operations of both owners and of the dealer are watched (`Tracker`). A tensor's `Shadow` says two things. Its
*layers* tell, element by element, which draws are contained additively (or by XOR) on how many bits. Its *rest* tells
all other draws on which the tensor may depend in any way; operations that are not known to keep a draw move it there.
So a layer is never claimed wrongly, and the rest never misses a draw: what would leave the watch, such as a tensor that
becomes a numpy array, is an error.

From this `check` proves, for each owner, that what it receives is uniform: each value holds on its whole width a draw
of the sender that masks no other value, and no circle of values depends on each other's draws. The values can then be
replaced by uniform numbers one after the other.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpcformer.channel import MemoryChannel
from mpcformer.correlations import is_shared, row_lookup
from mpcformer.correlations.keys import point_function, sign
from mpcformer.correlations.requests import Request
from mpcformer.engines.crypten.compat import fixed_point
from mpcformer.engines.lift import weights
from mpcformer.protocols import sealed
from mpcformer.ring import fused, kernels, packing, random
from tests import pair

DEALER = 2
# Operations that move elements about without changing them.
MOVES = {
    *("view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze"),
    *("squeeze", "clone", "alias", "detach", "unfold", "flip", "repeat", "index", "gather", "index_select"),
    *("split", "split_with_sizes", "chunk", "unbind", "lift_fresh", "contiguous"),
}
WIDTHS = {torch.int64: 64, torch.int32: 32, torch.int16: 16, torch.uint8: 8, torch.int8: 8}


# A set of draws: an integer that has the bit of each. Each draw is a tensor of random numbers that somebody drew.
Draws = int


@dataclass(frozen=True)
class Layer:
    """Draws that a tensor contains, additively or by XOR.

    Args:
        ids: by element the number of the drawn number, or 0.
        width: on how many of the lowest bits.
        is_xor: whether by XOR; None as long as it may be either.
        draws: the draws that these elements belong to.
    """

    ids: torch.Tensor
    width: int
    is_xor: bool | None
    draws: Draws


@dataclass(frozen=True)
class Shadow:
    """What is known of a tensor.

    Args:
        layers: the draws that it contains, element by element.
        rest: all other draws on which it may depend.
        top: no element has a bit from this one on, whatever was drawn.
    """

    layers: tuple[Layer, ...] = ()
    rest: Draws = 0
    top: int = 64

    def all(self) -> Draws:
        return union([self.rest, *(layer.draws for layer in self.layers)])


@dataclass(frozen=True)
class Packed:
    """The shadows of packed numbers: by piece the bytes, the shadow and the width."""

    pieces: tuple[tuple[int, Shadow, int], ...]

    def all(self) -> Draws:
        return union(shadow.all() for _, shadow, _ in self.pieces)


@dataclass
class Value:
    """A tensor that an owner receives, from the other owner or from the dealer."""

    name: str
    shadow: Shadow
    bits: int


def union(sets: Iterable[Draws]) -> Draws:
    found = 0
    for each in sets:
        found |= each
    return found


class Tracker:
    """Watches all tensor operations between `watching` and its end.

    Attributes:
        received: what each owner receives, by its rank.
        drawn_by: by owner or dealer, the draws that it made. The dealer makes those of the owners again.
        n_sealed: how many messages were sealed.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.received: tuple[list[Value], list[Value]] = ([], [])
        self._shadows: dict[int, Shadow | Packed] = {}
        self._storages: dict[int, Draws] = {}
        self._alive: dict[int, list[torch.Tensor]] = {}
        self._draws: dict[tuple[bytes, int], tuple[Draws, torch.Tensor]] = {}
        self.drawn_by = {0: 0, 1: 0, DEALER: 0}
        self._next = 1
        self._here = threading.local()
        self._lock = threading.RLock()
        self.n_sealed = 0
        self._patch(patch)

    # ---- what is watched -----------------------------------------------------------------------------------------

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        tracker = self

        class Watched(random.Stream):
            __slots__ = ("_at", "_key")

            def __init__(self, key: bytes) -> None:
                super().__init__(key)
                self._key, self._at = key, 0

            def int64(self, shape: Sequence[int]) -> torch.Tensor:
                return tracker.drawn(self, super().int64, shape)

            def int32(self, shape: Sequence[int]) -> torch.Tensor:
                return tracker.drawn(self, super().int32, shape)

        self._replace(patch, random.Stream, Watched)
        self._replace(patch, kernels.load, lambda: (None, "off"))
        self._replace(patch, fused.compiled, lambda: None)
        self._replace(patch, packing.pack, self.pack)
        self._replace(patch, packing.unpack, self.unpack)
        self._replace(patch, packing.unpack_onto, self.unpack_onto)
        self._replace(patch, packing.unpack_int32, lambda packed, shape: self.unpack(packed, shape, 32).to(torch.int32))
        self._replace(patch, random.block_hash, self._opaque(random.block_hash))
        self._replace(patch, row_lookup.ask, self._opaque(row_lookup.ask))
        # Their results look uniform to whoever has one root, see `_deal`; what an owner makes of them it does alone.
        for keys in (point_function, sign):
            self._replace(patch, keys.corrections, self._quiet(keys.corrections))
            self._replace(patch, keys.evaluate, self._opaque(keys.evaluate))
        self._replace(patch, random.key_of, self._quiet(random.key_of))
        # Whether an owner's own number fits decides about an error alone.
        self._replace(patch, fixed_point._check_range, self._quiet(fixed_point._check_range))
        patch.setattr(sealed, "seal", self._seal(sealed.seal))
        # It runs before any protocol, on made-up texts with a key that everybody knows.
        patch.setattr(weights, "check_rounding", lambda *_: None)
        patch.setattr(pair, "deal", self._deal(pair.deal))
        patch.setattr(pair, "in_two_threads", self._owners(pair.in_two_threads))
        send = MemoryChannel.send

        def record(channel: MemoryChannel, tensors: Sequence[torch.Tensor]) -> None:
            tracker._record(tensors)
            send(channel, tensors)

        patch.setattr(MemoryChannel, "send", record)
        numpy = torch.Tensor.numpy

        def leaves(tensor: torch.Tensor, **options: Any) -> Any:
            if tracker._is_watching() and tracker.of(tensor).all():
                raise AssertionError("a draw leaves the watch as a numpy array")
            return numpy(tensor, **options)

        patch.setattr(torch.Tensor, "numpy", leaves)

    @staticmethod
    def _replace(patch: pytest.MonkeyPatch, original: Any, other: Any) -> None:
        """Put `other` wherever a module has the original under some name."""
        for name, module in list(sys.modules.items()):
            if name.startswith(("mpcformer.", "tests.")) and name != __name__:
                for key, value in list(vars(module).items()):
                    if value is original:
                        patch.setattr(module, key, other)

    def _is_watching(self) -> bool:
        return getattr(self._here, "who", None) is not None and not getattr(self._here, "quiet", False)

    @contextmanager
    def watching(self, who: int) -> Iterator[None]:
        """Watch this thread; `who` is the owner's rank, or the dealer."""
        self._here.who = who
        try:
            with Mode(self):
                yield
        finally:
            self._here.who = None

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        before = getattr(self._here, "quiet", False)
        self._here.quiet = True
        try:
            yield
        finally:
            self._here.quiet = before

    def _owners(self, in_two_threads: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[[int], Any]) -> Any:
            def watched(rank: int) -> Any:
                with self.watching(rank):
                    return function(rank)

            return in_two_threads(watched)

        return run

    def _quiet(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with self._unwatched():
                return function(*args)

        return run

    def _opaque(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return the function, whose result may depend on all draws of its arguments."""

        def run(*args: Any) -> torch.Tensor:
            if not self._is_watching():
                return function(*args)
            rest = self._rest(args)
            with self._unwatched():
                out = function(*args)
            return self.put(out, Shadow((), rest))

        return run

    # ---- shadows -------------------------------------------------------------------------------------------------

    def of(self, tensor: torch.Tensor) -> Shadow | Packed:
        found = self._shadows.get(id(tensor))
        if found is not None:
            return found
        if tensor.device.type == "meta":
            return Shadow()
        return Shadow((), self._storages.get(tensor.untyped_storage().data_ptr(), 0))

    def put(self, tensor: torch.Tensor, shadow: Shadow | Packed) -> torch.Tensor:
        with self._lock:
            pointer = tensor.untyped_storage().data_ptr()
            # They are kept, so that neither an id nor an address is used again.
            self._alive.setdefault(pointer, []).append(tensor)
            self._shadows[id(tensor)] = shadow
            self._storages[pointer] = self._storages.get(pointer, 0) | shadow.all()
        return tensor

    def sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors that share the memory of this one."""
        return self._alive.get(tensor.untyped_storage().data_ptr(), [])

    def _rest(self, args: Any) -> Draws:
        return union(self.of(t).all() for t in tensors_in(args))

    def drawn(self, stream: Any, draw: Callable[..., torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        who = getattr(self._here, "who", None)
        with self._unwatched():
            out = draw(shape)
        if who is None or getattr(self._here, "quiet", False):
            return out
        place, stream._at = (stream._key, stream._at), stream._at + 1
        with self._lock:
            if place not in self._draws:
                ids = torch.arange(self._next, self._next + out.numel()).view(out.shape)
                self._draws[place] = 1 << len(self._draws), ids
                self._next += out.numel()
            found, ids = self._draws[place]
            self.drawn_by[who] |= found
        return self.put(out, Shadow((Layer(ids, WIDTHS[out.dtype], None, found),)))

    def pack(self, x: torch.Tensor, bits: int) -> torch.Tensor:
        with self._unwatched():
            packed = ORIGINAL_PACK(x, bits)
        if not self._is_watching() or x.device.type == "meta":
            return packed
        shadow = self.of(x)
        assert isinstance(shadow, Shadow)
        out = packed if packed.data_ptr() != x.data_ptr() else packed.clone()
        return self.put(out, Packed(((out.numel(), shadow, bits),)))

    def unpack(self, packed: torch.Tensor, shape: Sequence[int], bits: int) -> torch.Tensor:
        with self._unwatched():
            out = ORIGINAL_UNPACK(packed, shape, bits).clone()
        if not self._is_watching() or packed.device.type == "meta":
            return out
        shadow = self.of(packed)
        if isinstance(shadow, Packed):
            ((_, inner, width),) = shadow.pieces
            assert width == bits, "numbers are unpacked as they were packed"
        else:
            inner = shadow
        layers = tuple(replace(layer, ids=layer.ids.reshape(tuple(shape))) for layer in inner.layers)
        return self.put(out, replace(inner, layers=layers))

    def unpack_onto(self, packed: torch.Tensor, x: torch.Tensor, bits: int) -> torch.Tensor:
        return packing.reduce(self.unpack(packed, x.shape, bits) + x, bits)

    # ---- what is sent --------------------------------------------------------------------------------------------

    def _record(self, tensors: Sequence[torch.Tensor]) -> None:
        who = self._here.who
        n_sealed = 2 if getattr(self._here, "is_sealed", False) else 0
        for tensor in tensors:
            shadow = self.of(tensor)
            width = WIDTHS[tensor.dtype]
            pieces = shadow.pieces if isinstance(shadow, Packed) else ((0, shadow, min(width, shadow.top)),)
            if n_sealed:  # the last two pieces are the seals and what they are for
                self._here.is_sealed, self.n_sealed = False, self.n_sealed + 1
                pieces = pieces[:-n_sealed]
            for _, each, bits in pieces:
                at = len(self.received[1 - who])
                self.received[1 - who].append(Value(f"message {at}, {bits} bits", each, bits))

    def _seal(self, seal: Callable[..., Any]) -> Callable[..., Any]:
        """What is sealed is masked by a key that nobody draws: tests/attacks/test_refused_logits.py is about it."""

        def run(block: torch.Tensor, numbers: torch.Tensor, bits: int) -> Any:
            with self._unwatched():
                halves = seal(block, numbers, bits)
            if numbers.device.type != "meta":
                self._here.is_sealed = True
            return halves

        return run

    def _deal(self, deal: Callable[..., list[torch.Tensor]]) -> Callable[..., list[torch.Tensor]]:
        def run(request: Request, *keys: Any) -> list[torch.Tensor]:
            corrections = deal(request, *keys)
            for i, tensor in enumerate(corrections):
                shadow = self.of(tensor)
                if is_shared(request):
                    # Keys of point functions look uniform to whoever has one root; they are no sums.
                    self.put(tensor, Shadow() if isinstance(shadow, Shadow) else Packed(()))
                    continue
                pieces = shadow.pieces if isinstance(shadow, Packed) else ((0, shadow, 64),)
                for _, each, bits in pieces:
                    self.received[0].append(Value(f"correction {i} of {request.kind} {request.op}", each, bits))
            return corrections

        return run


ORIGINAL_PACK, ORIGINAL_UNPACK = packing.pack, packing.unpack


class Mode(TorchDispatchMode):
    """Hands all operations of a thread to the tracker."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tracker = self._tracker
        if not tracker._is_watching():
            return out
        name = func.overloadpacket.__name__
        inputs = tensors_in((args, kwargs))
        if any(t.device.type == "meta" for t in inputs):
            return out
        if name == "_local_scalar_dense" and tracker._rest(inputs):
            raise AssertionError("a draw leaves the watch as a number")
        is_inplace = name.endswith("_") and not name.startswith("_")
        results = [t for t in tensors_in((out,)) if t.device.type != "meta"]
        for i, result in enumerate(results):
            shadow = self._shadow(func, name.removesuffix("_") if is_inplace else name, args, kwargs, result, i)
            tracker.put(result, shadow)
            if is_inplace:
                # What shares this memory has other numbers now.
                for other in tracker.sharing(result):
                    if other is not result:
                        tracker._shadows[id(other)] = Shadow((), tracker.of(other).all() | shadow.all())
        return out

    def _shadow(
        self, func: Any, name: str, args: Any, kwargs: Any, result: torch.Tensor, index: int
    ) -> Shadow | Packed:
        tracker = self._tracker
        first = tracker.of(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        if isinstance(first, Packed) or (name == "cat" and any(isinstance(tracker.of(t), Packed) for t in args[0])):
            return self._of_packed(name, args, first)
        rest = tracker._rest((args, kwargs))
        if name in MOVES and isinstance(first, Shadow):
            layers = []
            for layer in first.layers:
                with tracker._unwatched():
                    # The numbers of the draws may lie in another order in memory than the tensor's elements.
                    same = name in ("view", "_unsafe_view")
                    moved = layer.ids.reshape(args[1]) if same else func(layer.ids, *args[1:], **kwargs)
                layers.append(replace(layer, ids=tensors_in((moved,))[index]))
            return Shadow(tuple(layers), first.rest | tracker._rest((args[1:], kwargs)), first.top)
        if name in ("cat", "stack"):
            return self._joined(func, args, kwargs)
        if name == "_to_copy" and isinstance(first, Shadow) and result.dtype in WIDTHS:
            width = WIDTHS[result.dtype]
            return replace(first, layers=tuple(replace(x, width=min(x.width, width)) for x in first.layers))
        if name == "neg" and isinstance(first, Shadow):
            return replace(self._kept(first, False), top=64)
        if name in ("add", "sub", "rsub", "bitwise_xor", "__xor__") and kwargs.get("alpha", 1) == 1:
            return self._sum(args[:2], result, name in ("bitwise_xor", "__xor__"))
        if name in ("bitwise_and", "__and__") and isinstance(args[1], int) and isinstance(first, Shadow):
            mask = args[1]
            if mask > 0 and mask & (mask + 1) == 0:
                width = mask.bit_length()
                layers = [replace(x, width=min(x.width, width)) for x in first.layers]
                return replace(first, layers=tuple(layers), top=min(first.top, width))
        if name == "index_put" and isinstance(first, Shadow) and not (len(args) > 3 and args[3]):
            return self._index_put(args, first, rest)
        if name == "scatter_add" and isinstance(first, Shadow):
            others = tracker._rest(args[1:])
            return replace(self._kept(first, False), rest=first.rest | others, top=64)
        return Shadow((), rest)

    @staticmethod
    def _kept(shadow: Shadow, is_xor: bool) -> Shadow:
        """Return the shadow behind an operation that keeps layers of its own sort alone."""
        kept = tuple(replace(x, is_xor=is_xor) for x in shadow.layers if x.is_xor in (None, is_xor))
        lost = union(x.draws for x in shadow.layers if x.is_xor not in (None, is_xor))
        return Shadow(kept, shadow.rest | lost)

    def _sum(self, terms: Any, result: torch.Tensor, is_xor: bool) -> Shadow:
        layers: list[Layer] = []
        rest = 0
        for term in terms:
            if not isinstance(term, torch.Tensor):
                continue
            shadow = self._tracker.of(term)
            assert isinstance(shadow, Shadow)
            kept = self._kept(shadow, is_xor)
            rest |= kept.rest
            if term.shape != result.shape:  # broadcast: one draw for several elements
                rest |= kept.all()
                continue
            layers += kept.layers
        # A draw on both sides may cancel.
        seen = twice = 0
        for layer in layers:
            seen, twice = seen | layer.draws, twice | (seen & layer.draws)
        single = tuple(x for x in layers if not x.draws & twice)
        tops = [self._tracker.of(x).top if isinstance(x, torch.Tensor) else 64 for x in terms]  # type: ignore[union-attr]
        rest |= union(x.draws for x in layers if x.draws & twice)
        return Shadow(single, rest, max(tops) if is_xor else 64)

    def _joined(self, func: Any, args: Any, kwargs: Any) -> Shadow:
        shadows = [self._tracker.of(t) for t in args[0]]
        rest = union(s.rest for s in shadows if isinstance(s, Shadow))
        layers = []
        for i in range(max((len(s.layers) for s in shadows if isinstance(s, Shadow)), default=0)):
            parts = [s.layers[i] if isinstance(s, Shadow) and i < len(s.layers) else None for s in shadows]
            with self._tracker._unwatched():
                ids = [torch.zeros(t.shape).long() if x is None else x.ids for t, x in zip(args[0], parts, strict=True)]
                joined = func(ids, *args[1:], **kwargs)
            kinds = {x.is_xor for x in parts if x is not None} - {None}
            draws = union(x.draws for x in parts if x is not None)
            if len(kinds) > 1:
                rest |= draws
                continue
            width = min(x.width for x in parts if x is not None)
            layers.append(Layer(joined, width, next(iter(kinds), None), draws))
        return Shadow(tuple(layers), rest, max(s.top for s in shadows if isinstance(s, Shadow)))

    def _index_put(self, args: Any, first: Shadow, rest: Draws) -> Shadow:
        values = self._tracker.of(args[2])
        if not isinstance(values, Shadow) or len(first.layers) != 1 or len(values.layers) != 1:
            return Shadow((), rest)
        mine, theirs = first.layers[0], values.layers[0]
        with self._tracker._unwatched():
            ids = mine.ids.index_put(tuple(args[1]), theirs.ids)
        layer = Layer(ids, min(mine.width, theirs.width), theirs.is_xor, mine.draws | theirs.draws)
        return Shadow((layer,), first.rest | values.rest | self._tracker._rest(args[1]))

    def _of_packed(self, name: str, args: Any, first: Shadow | Packed | None) -> Packed:
        if name == "cat":
            shadows = [self._tracker.of(t) for t in args[0]]
            return Packed(tuple(piece for shadow in shadows for piece in shadow.pieces))  # type: ignore[union-attr]
        assert isinstance(first, Packed)
        if name in ("clone", "alias", "detach", "view", "_to_copy"):
            return first
        assert name == "slice", f"{name} of packed numbers"
        start, end = args[2], min(args[3], args[0].numel())
        pieces, at = [], 0
        for n_bytes, shadow, bits in first.pieces:
            if start <= at < end:
                pieces.append((n_bytes, shadow, bits))
            at += n_bytes
        assert sum(n for n, _, _ in pieces) == end - start, "packed numbers are cut between messages' parts"
        return Packed(tuple(pieces))


def tensors_in(args: Any) -> list[torch.Tensor]:
    """Return all tensors in nested arguments."""
    found: list[torch.Tensor] = []
    for each in args if isinstance(args, (list, tuple)) else args.values() if isinstance(args, dict) else [args]:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple, dict)):
            found += tensors_in(each)
    return found


def check(values: list[Value], senders: Draws) -> int:
    """Prove that these values of one owner's view are uniform together; return how many they are.

    Args:
        values: all that the owner receives, from the other owner and the dealer.
        senders: the draws that the other owner made, and this one did not: they can mask the values.

    Raises:
        AssertionError: a value has no mask of its own, or masks depend on each other in a circle.
    """
    used: set[int] = set()
    masks: list[Draws] = []
    for value in values:
        layer = next((x for x in value.shadow.layers if _masks(x, value, senders, used)), None)
        if layer is None:
            raise AssertionError(f"{value.name} is not masked by a draw of its sender that masks nothing else")
        used.update(layer.ids.reshape(-1).tolist())
        masks.append(layer.draws)
    needs: dict[int, set[int]] = {}
    for i, value in enumerate(values):
        depends = value.shadow.all() & ~masks[i]
        needs[i] = {j for j, mask in enumerate(masks) if mask & depends}
    try:
        list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        names = [values[i].name for i in error.args[1]]
        raise AssertionError(f"these mask each other in a circle: {', '.join(names)}") from None
    return len(values)


def _masks(layer: Layer, value: Value, senders: Draws, used: set[int]) -> bool:
    """Return whether a layer masks a value: each element by a draw of its own, on all bits, used nowhere before."""
    others = value.shadow.rest | union(x.draws for x in value.shadow.layers if x is not layer)
    if layer.width < value.bits or layer.draws & (others | ~senders):
        return False
    ids = layer.ids.reshape(-1).tolist()
    return len(set(ids)) == len(ids) and 0 not in ids and used.isdisjoint(ids)
