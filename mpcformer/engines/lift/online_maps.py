"""The online part of a batch's linear maps: one masked input, one product, and one message back.

The data owner's half of the opening behind a map was sent without the text (ahead.py). Rows that are looked up
in a large table (words.py) are the exception: there the data owner's half goes online, and last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mpcformer.engines.lift.ahead import Ahead, Known
from mpcformer.engines.lift.maps import Map, Tensors
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.engines.lift.words import PrivateWords
from mpcformer.errors import ProtocolError
from mpcformer.protocols import linear
from mpcformer.protocols.party import (
    DATA_OWNER,
    MODEL_OWNER,
    Party,
    Share,
    add_halves,
    add_message,
    add_messages,
    computed,
    fused,
    shapes_of,
    without_message,
)
from mpcformer.ring.fused import Fused
from mpcformer.ring.gemm import ShortMatrix
from mpcformer.ring.packing import Operand, unpack_onto


@dataclass(repr=False)
class Asked:
    """A linear map whose input is with the model owner.

    Args:
        name, item: the map.
        widths: the rings of its weights.
        known: the data owner's half of the opening; None in a plan.
        following: the correlations of the opening.
        whole: the input under the data owner's mask, at the model owner.
        corrections: those of the map, at the model owner.
    """

    name: str
    item: Map
    widths: list[int]
    known: Known | None
    following: Tensors
    whole: torch.Tensor | None = field(default=None, repr=False)
    corrections: Sequence[Operand] = ()


class OnlineMaps:
    """The linear maps of one batch, online.

    Args:
        party: this owner.
        constants: the public scales.
        shapes: the shape of every weight, see `weight_shapes`.
        ahead: what is done without the text.
        owned: the weights at the model owner, else None.
        size: B and L.
    """

    def __init__(
        self,
        party: Party,
        constants: LiftScales,
        shapes: dict[str, tuple[int, ...]],
        ahead: Ahead,
        owned: OwnedWeights | None,
        size: tuple[int, int],
    ) -> None:
        self._party, self._constants, self._shapes, self._owned = party, constants, shapes, owned
        self._maps, self._known = ahead.maps.anew(), ahead.known
        self._n_batch, self._n_positions = size

    def apply(self, name: str, x: torch.Tensor) -> tuple[list[torch.Tensor], Tensors]:
        """Compute a map of the shared x (rows, in) and the opening after it.

        Args:
            name: the map's.
            x: this owner's share. For the embeddings, at the data owner, the columns (rows, 2) that hold a one.

        Returns:
            What was opened, and the correlations to use it with.
        """
        asked = self.ask(name, x)
        return self.answer(asked), asked.following

    def ask(self, name: str, x: torch.Tensor) -> Asked:
        """Send a map's masked input at the data owner, and receive it at the model owner; arguments as in `apply`."""
        item, party = self._maps[name], self._party
        widths = [self._constants.weight_bits(weight) for weight in item.weights]
        bits = max(widths)
        request = linear.request(item.weights, item.rows, self._shapes, widths)
        known = self._known.pop(name, None)
        is_plan = party.rank == MODEL_OWNER and self._owned is None
        if known is None and not is_plan:
            raise ProtocolError("a map is used online before its offline part")
        if party.rank == DATA_OWNER:
            mask = party.store.input_mask(request)
            if name == "embeddings":
                masked_input: Share = mask.neg_().scatter_add_(1, x, torch.ones_like(x))
            else:
                masked_input = fused(x) - mask
            party.send([(masked_input, bits)])
            following = [party.take_packed(request) for request in item.following]
            party.store.work_ahead()
            return Asked(name, item, widths, known, following)
        corrections, following = party.take_packed(request), [party.take_packed(request) for request in item.following]
        shape = (item.rows, self._shapes[item.weights[0]][0])
        party.store.work_ahead()
        whole = unpack_onto(party.receive([(shape, bits)]), x.expand(shape), bits)
        return Asked(name, item, widths, known, following, whole, corrections)

    def answer(self, asked: Asked) -> list[torch.Tensor]:
        """Open what follows a map that was asked for: the model owner's product goes to the data owner."""
        item, party, known = asked.item, self._party, asked.known
        if party.rank == DATA_OWNER:
            assert known is not None
            return add_messages(known.message, party.receive(known.shapes), known.shapes)
        assert asked.whole is not None
        z = linear.model_owner_share(asked.whole, self._weights(item.weights), asked.corrections, asked.widths)
        z = [self.with_bias(share, weight) for share, weight in zip(z, item.weights, strict=True)]
        halves = item.halves(z, asked.following)
        shapes = self._maps.half_shapes.setdefault(asked.name, shapes_of(halves))
        theirs = without_message(shapes, asked.whole.device) if known is None else known.message
        return party.send_onto(halves, theirs)

    def with_bias(self, share: Fused, name: str) -> Fused:
        """Add the bias of a map, if it has one; that of the embeddings differs between positions."""
        bias = None if self._owned is None else self._owned.biases.get(name)
        if bias is None:
            return share
        return share + (bias[: self._n_positions].repeat(self._n_batch, 1) if name == "embeddings" else bias)

    def look_up(self, words: PrivateWords, columns: torch.Tensor) -> tuple[list[torch.Tensor], Tensors]:
        """Do for a large table what `apply` does for the embeddings; the data owner's half goes last."""
        item, party = self._maps["embeddings"], self._party
        words.take(party)
        shapes = self._maps.shapes_of_halves("embeddings")
        following = [party.take_packed(request) for request in item.following]
        if party.rank == DATA_OWNER:
            z, theirs = words.ask(party, columns, shapes)
            halves = [(computed(x), bits) for x, bits in item.halves([Fused(z)], following)]
            party.send(halves)
            return add_halves(halves, theirs), following
        answers, z = words.answer(party)
        if self._owned is not None:
            z += self._owned.biases["embeddings"][: self._n_positions].repeat(self._n_batch, 1)
        mine = [(computed(x), bits) for x, bits in item.halves([Fused(z)], following)]
        party.send([answers, *mine])
        return add_message(mine, party.receive(shapes)), following

    def _weights(self, names: list[str]) -> list[torch.Tensor | ShortMatrix]:
        if self._owned is None:  # planning
            return [torch.empty(self._shapes[n], dtype=torch.int64, device="meta") for n in names]
        return [self._owned.short.get(name, self._owned.weights[name]) for name in names]
