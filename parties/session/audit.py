"""Audits of the dealer: some batches that were dealt ahead are dealt again by the model owner, compared, and dropped.

Which ones is decided by both owners' coins, after the dealer has sent all that belongs to the batch. If a batch is
chosen, the data owner reveals its keys of the batch's operations: nothing of it was used yet, and nothing will be.
Whatever the dealer makes follows from the owners' keys, so the model owner can make the same and compare it byte by
byte.
"""

import hashlib
import logging
from collections.abc import Sequence

import torch

from mpcformer.channel import Channel, Spec
from mpcformer.correlations import CorrelationStore, Request, deal
from mpcformer.errors import PartyError
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER
from mpcformer.ring.random import KEY_BYTES
from parties.session import transcript
from parties.settings import metrics

log = logging.getLogger(__name__)
PASSED = torch.ones(1, dtype=torch.uint8)


class Audit:
    """One owner's side of the audits of a session.

    Args:
        rank: of the owner.
        rate: how many of all batches are audited, 0 for none. Both owners have the same.
        channel: the one on which batches are dealt.
        session_id: what both owners have drawn.
        dealer: the party id of the dealer.
    """

    def __init__(self, *, rank: int, rate: float, channel: Channel, session_id: bytes, dealer: str) -> None:
        self._rank, self._rate, self._channel, self._dealer = rank, rate, channel, dealer
        self._session_id = session_id
        self._n_drawn = 0
        self._arrived: dict[int, bytes] = {}

    def note(self, operation: int, correction: list[torch.Tensor]) -> None:
        """Remember what the dealer sent for an operation, at the model owner."""
        if self._rate and self._rank == MODEL_OWNER:
            self._arrived[operation] = _digest(correction)

    def passes(self, part: CorrelationStore, first: int, requests: Sequence[Request]) -> bool:
        """Decide with the other owner whether a batch is audited, and if so, audit it and use its correlations up.

        Args:
            part: the batch's correlations, of which none was taken.
            first: the index of its first operation.
            requests: its plan.

        Returns:
            Whether the batch can be used: it was not audited.

        Raises:
            PartyError: the dealer dealt something else than the keys say; the error names dealer and operation.
        """
        if not self._rate:
            return True
        if not self._is_chosen():
            self._arrived.clear()
            return True
        keys, masks = part.give_up(requests)
        if self._rank == DATA_OWNER:
            self._channel.send([torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8)])
            self._channel.receive([Spec.of(PASSED)])
            return False
        revealed = self._channel.receive([Spec(torch.uint8, (KEY_BYTES * len(keys),))])[0].numpy().tobytes()
        for n, (request, key) in enumerate(zip(requests, keys, strict=True)):
            theirs = revealed[KEY_BYTES * n : KEY_BYTES * (n + 1)]
            if _digest(deal(request, key, theirs, masks)) != self._arrived.pop(first + n):
                raise PartyError(
                    self._dealer,
                    f"an audit found operation {first + n} ({request.kind}) dealt wrongly",
                    "use another dealer; or the data owner revealed wrong keys: ask its operator",
                )
        metrics.audited.inc()
        log.info("the dealer passed an audit of %d operations from %d", len(keys), first)
        self._channel.send([PASSED])
        return False

    def _is_chosen(self) -> bool:
        """Toss both owners' coins: neither owner decides alone, and the dealer does not know what they are."""
        self._n_drawn += 1
        label = b"audit" + self._session_id + self._n_drawn.to_bytes(8, "big")
        coins = transcript.draw_together(self._channel, self._rank, label)
        return int.from_bytes(coins[:8], "big") < self._rate * 2.0**64


def _digest(correction: list[torch.Tensor]) -> bytes:
    """Return a digest of the tensors as they travel, 32 bytes."""
    found = hashlib.sha256()
    for tensor in correction:
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
