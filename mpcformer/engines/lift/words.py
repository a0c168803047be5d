"""The rows of a batch's words from the model owner's private table, at both owners; bert.py opens them."""

from collections.abc import Mapping, Sequence

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.row_lookup import BITS, LookupSpec
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.errors import ProtocolError
from mpcformer.protocols import row_lookup
from mpcformer.protocols.party import DATA_OWNER, Half, HalfShape, NumbersAndBits, Party, split
from mpcformer.ring.filed import Masked
from mpcformer.ring.packing import PackedMatrix

NAME = "embeddings"


class PrivateWords:
    """The lookup of one batch. Unlike the result of a linear map, the data owner does not know its share ahead.

    Its offline part may run in another thread, and on another channel, than its online part.

    Args:
        request: the request for the lookup's correlation.
        owned: the weights at the model owner, else None.
        mask: the mask of the table at the model owner, else None.
        masked: the masked weights at the data owner, else None.
        is_plan: whether this is a dry run on meta tensors.
    """

    def __init__(
        self,
        request: Request,
        owned: OwnedWeights | None,
        mask: torch.Tensor | None,
        masked: Mapping[str, Masked] | None,
        is_plan: bool,
    ) -> None:
        self._request, self._owned, self._masked = request, owned, masked
        self._mask, self._is_plan, self._spec = mask, is_plan, LookupSpec.of(request)
        self._tensors: list[torch.Tensor] = []
        self._asked: row_lookup.Asked | None = None

    def offline(self, party: Party, operation: int) -> None:
        """Expand the data owner's masks; both owners find out the places of this session."""
        _ = self._spec.places
        if party.rank == DATA_OWNER:
            self._asked = row_lookup.Asked(self._request, party.store.preview(operation, self._request).shares)

    def take(self, party: Party) -> None:
        """Use up the correlation, of which the data owner has done its part `offline`."""
        if party.rank == DATA_OWNER:
            party.store.skip(self._request)
        else:
            self._tensors = party.take(self._request)

    def ask(
        self, party: Party, columns: torch.Tensor, following: Sequence[HalfShape]
    ) -> tuple[torch.Tensor, list[NumbersAndBits]]:
        """Ask for the rows, at the data owner, and receive the answer.

        Args:
            party: the data owner.
            columns: (B L, 2), the columns at which one-hot rows of words and types have their ones.
            following: shape and bits of the halves that come with the answer.

        Returns:
            The data owner's share of the rows, (B L, H), and those halves.
        """
        table = None if self._masked is None else self._masked[NAME]
        if self._asked is None or table is None or isinstance(table, PackedMatrix):
            raise ProtocolError("words are asked for before their offline part")
        asked, self._asked = self._asked, None
        words, types = columns.unbind(1)
        party.send(asked.halves(words, types - self._spec.n_words))
        shapes = [(self._spec.answers, BITS), *following]
        (answers, _), *halves = split(party.receive(shapes), shapes)
        return asked.share(words, answers, table), halves

    def answer(self, party: Party) -> tuple[Half, torch.Tensor]:
        """Answer, at the model owner: return the answers, which are to be sent, and its share of the rows, (B L, H)."""
        spec = self._spec
        tensors, self._tensors = self._tensors, []
        shapes: list[HalfShape] = [(spec.questions, BITS), (spec.choices, BITS)]
        (questions, _), (choices, _) = split(party.receive(shapes), shapes)
        if self._is_plan:
            return (tensors[1], BITS), tensors[2].view(-1, spec.width)[: spec.n_lookups]
        if self._owned is None or self._mask is None:
            raise ProtocolError("the model owner's tables are missing")
        types = self._owned.weights[NAME][spec.n_words :]
        answers, rows = row_lookup.model_owner_answer(self._request, questions, choices, self._mask, types, tensors)
        return (answers, BITS), rows
