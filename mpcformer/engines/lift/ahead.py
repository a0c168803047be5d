"""What the owners do for a batch without its text: the data owner sends its halves of the openings ahead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mpcformer.engines.lift.maps import Map, Maps
from mpcformer.engines.lift.scales.model import LiftScales
from mpcformer.engines.lift.weights import OwnedWeights, weight_shapes
from mpcformer.engines.lift.words import PrivateWords
from mpcformer.errors import ProtocolError
from mpcformer.protocols import linear, row_lookup
from mpcformer.protocols.party import DATA_OWNER, HalfShape, Party, shapes_of
from mpcformer.ring.filed import Masked


@dataclass(repr=False)
class Known:
    """The data owner's half of an opening, which was sent ahead.

    Args:
        message: the half, packed.
        shapes: shape and bits of each number in it.
    """

    message: torch.Tensor = field(repr=False)
    shapes: list[HalfShape]


class Ahead:
    """The part of one batch that does not depend on its text.

    A segment's part may run in one thread while another one computes the segments before it.

    Args:
        party: this owner, with the channel for dealing.
        config, constants: the public configuration and scales.
        size: B and L, the sentences and the padded length.
        owned: the weights at the model owner, else None.
        masked: the masked weights at the data owner, else None.
        embeddings: private_table or public_table.
        salt: decides the places of words in this session, see mpcformer/correlations/row_lookup.py.
        table_mask: the mask of the private table at the model owner, else None.
        is_plan: whether this is a dry run on meta tensors.
        half_shapes: what a dry run has found out, see `Maps`.

    Attributes:
        maps: the linear maps of the batch.
        words: the lookup of the batch's words, if its table is private and large.
        known: by map, what was sent ahead and is not used yet.
    """

    def __init__(
        self,
        party: Party,
        config: Any,
        constants: LiftScales,
        size: tuple[int, int],
        owned: OwnedWeights | None,
        masked: dict[str, Masked] | None,
        *,
        embeddings: str = "private_table",
        salt: int = 0,
        table_mask: torch.Tensor | None = None,
        is_plan: bool = False,
        half_shapes: Mapping[str, list[HalfShape]] | None = None,
    ) -> None:
        self._party, self._masked, self._constants = party, masked, constants
        self._shapes = weight_shapes(config, embeddings)
        self.known: dict[str, Known] = {}
        self.words: PrivateWords | None = None
        if embeddings == "private_table":
            wanted = size[0] * size[1], config.type_vocab_size, self._shapes["embeddings"]
            if row_lookup.is_cheaper(*wanted):
                request = row_lookup.request("embeddings", *wanted, salt)
                self.words = PrivateWords(request, owned, table_mask, masked, is_plan)
        one_hot = embeddings == "private_table" and self.words is None
        self.maps = Maps(party.rank, config, constants, size, self._shapes, one_hot, half_shapes)

    def offline(self, segment: int, starts: dict[str, int]) -> None:
        """Send the data owner's halves of a segment's openings ahead.

        Args:
            segment: its number.
            starts: the index of each map's first operation in the plan, by the name of its first weight.
        """
        if segment == 0 and self.words is not None:
            self.words.offline(self._party, starts["embeddings"])
        for name in self.maps.of_segment(segment):
            if self._party.rank == DATA_OWNER:
                self.known[name] = self._sent(self.maps[name], starts)
            else:
                shapes = self.maps.shapes_of_halves(name)
                self.known[name] = Known(self._party.receive(shapes), shapes)

    def _sent(self, item: Map, starts: dict[str, int]) -> Known:
        """Compute the data owner's halves of the opening after a map, and send them."""
        if self._masked is None:
            raise ProtocolError("the masked weights have not arrived")
        preview, start = self._party.store.preview, starts[item.weights[0]]
        widths = [self._constants.weight_bits(weight) for weight in item.weights]
        request = linear.request(item.weights, item.rows, self._shapes, widths)
        masked = [self._masked[weight] for weight in item.weights]
        z = linear.data_owner_share(masked, preview(start, request).shares, widths)
        following = [preview(start + 1 + i, request).shares for i, request in enumerate(item.following)]
        halves = item.halves(z, following)
        return Known(self._party.send(halves), shapes_of(halves))
