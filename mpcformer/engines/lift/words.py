"""The rows of a batch's words from the model owner's private table, at both owners; private_bert.py opens them."""

from collections.abc import Sequence

import torch

from mpcformer.correlations import Request, sketch
from mpcformer.correlations.row_lookup import BITS, LookupSpec
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.errors import ProtocolError
from mpcformer.protocols import row_lookup
from mpcformer.protocols.party import DATA_OWNER, Half, HalfShape, Party, split

NAME = "embeddings"


class PrivateWords:
    """One batch's lookup; unlike a linear map, its result is not known to the data owner ahead.

    Args:
        party: this owner.
        request: the correlation's.
        owned: the model owner's weights, else None.
        mask: the table's, at the model owner; else None.
        masked: F of every weight at the data owner, else None.
        is_plan: on meta tensors.
    """

    def __init__(
        self,
        party: Party,
        request: Request,
        owned: OwnedWeights | None,
        mask: torch.Tensor | None,
        masked: dict[str, torch.Tensor] | None,
        is_plan: bool,
    ) -> None:
        self._party, self._request, self._owned, self._masked = party, request, owned, masked
        self._mask, self._is_plan, self._spec = mask, is_plan, LookupSpec.of(request)
        self._tensors: list[torch.Tensor] = []
        self._asked: row_lookup.Asked | None = None

    def offline(self, operation: int) -> None:
        """The data owner expands its masks, and both find out the session's places."""
        if not self._is_plan:
            _ = self._spec.places
        if self._party.rank == DATA_OWNER:
            self._asked = row_lookup.Asked(self._request, self._party.store.preview(operation, self._request).shares)

    def take(self) -> None:
        """Use up the correlation. The data owner has done its part of it `offline`."""
        if self._party.rank == DATA_OWNER:
            if self._asked is None and self._is_plan:
                self._asked = row_lookup.Asked(self._request, sketch(self._request, DATA_OWNER).shares)
            self._party.store.skip(self._request)
        else:
            self._tensors = self._party.take(self._request)

    def ask(self, columns: torch.Tensor, following: Sequence[HalfShape]) -> tuple[torch.Tensor, list[Half]]:
        """At the data owner: the question and the answer.

        Args:
            columns: (B L, 2), where the words' and the types' ones are in one-hot rows.
            following: shapes of the halves that come with the answer.

        Returns:
            Its share of the rows, (B L, H), and those halves.
        """
        if self._asked is None or self._masked is None:
            raise ProtocolError("words are asked for before their offline part")
        asked, self._asked = self._asked, None
        words, types = columns.unbind(1)
        self._party.send(asked.halves(words, types - self._spec.n_words))
        shapes = [(self._spec.answers, BITS), *following]
        (answers, _), *halves = split(self._party.receive(shapes), shapes)
        return asked.share(words, answers, self._masked[NAME]), halves

    def answer(self) -> tuple[Half, torch.Tensor]:
        """At the model owner: the answers, to be sent, and its share of the rows, (B L, H)."""
        spec = self._spec
        tensors, self._tensors = self._tensors, []
        shapes: list[HalfShape] = [(spec.questions, BITS), (spec.choices, BITS)]
        (questions, _), (choices, _) = split(self._party.receive(shapes), shapes)
        if self._is_plan:
            return (tensors[1], BITS), tensors[2].view(-1, spec.width)[: spec.n_lookups]
        if self._owned is None or self._mask is None:
            raise ProtocolError("the model owner's tables are missing")
        types = self._owned.weights[NAME][spec.n_words :]
        answers, rows = row_lookup.model_owner_answer(self._request, questions, choices, self._mask, types, tensors)
        return (answers, BITS), rows
