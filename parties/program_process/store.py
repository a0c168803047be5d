"""An owner's correlations of one run of a program, dealt by the session's dealer in the order of the plan."""

from collections.abc import Iterator
from contextlib import ExitStack

import torch

from mpcformer.channel import Channel
from mpcformer.correlations import CorrelationStore, Dealt, Request, correction_specs, is_shared, kept_bytes
from mpcformer.engines.base import MODEL_OWNER
from mpcformer.errors import ProtocolError
from parties.session.audit import Audit
from parties.wire.dealer_link import DealerLink
from parties.wire.frame import Frame


class ProgramStore:
    """The correlations of a plan.

    A plan that fits the pool is dealt whole before it is used, and may be audited. Of a larger one the first part waits
    in the pool, and the dealer sends the rest while the program runs.

    Args:
        rank: of the owner.
        seed: from the dealer.
        drawn_id: what both owners have drawn for this session, 16 bytes.
        plan: the requests.
        dealer: where the corrections come from.
        channel: to the other owner, for those corrections that both need.
        pool_bytes: how many bytes of corrections may wait; the same at both owners.
        audit: the owner's side of audits.
    """

    def __init__(
        self,
        *,
        rank: int,
        seed: bytes,
        drawn_id: bytes,
        plan: list[Request],
        dealer: DealerLink,
        channel: Channel,
        pool_bytes: int,
        audit: Audit,
    ) -> None:
        self.bytes_from_dealer = self.n_audited = 0
        self._rank, self._drawn_id, self._plan = rank, drawn_id, plan
        self._dealer, self._channel, self._audit = dealer, channel, audit
        self._n_ahead = n_fitting(plan, pool_bytes)
        self._whole = CorrelationStore(rank=rank, seed=seed, session_id=drawn_id)
        self._part, self._first, self._n_here = self._whole, 0, 0
        self._frames: Iterator[Frame] = iter(())
        # The dealer's stream while a program runs whose plan does not fit the pool.
        self._rest = ExitStack()

    def deal(self) -> None:
        """Let the plan be dealt, as far as the pool has room. Both owners call this at the same time.

        Raises:
            PartyError: the dealer failed, or an audit found that it dealt wrongly.
        """
        fits = self._n_ahead == len(self._plan)
        while self._plan:
            self._first, self._n_here = self._whole.next_operation, 0
            self._part = self._whole.reserve(len(self._plan))
            with ExitStack() as stream:
                if self._rank == MODEL_OWNER:
                    first = self._first
                    dealing = self._dealer.dealing(
                        self._plan, drawn_id=self._drawn_id, batch_operation=first, first=first
                    )
                    self._frames = stream.enter_context(dealing)
                while self._n_here < self._n_ahead:
                    self._receive()
                if not fits:
                    self._rest = stream.pop_all()
                    return
            if self._audit.passes(self._part, self._first, self._plan):
                return
            self.n_audited += 1

    def end(self) -> None:
        """End the dealer's stream, after the last correlation was used.

        Raises:
            PartyError: the dealer dealt more than the plan.
        """
        self._rest.close()

    @property
    def n_left(self) -> int:
        """How many correlations were planned and not used."""
        return len(self._plan) - (self._part.next_operation - self._first)

    def take(self, request: Request) -> Dealt:
        """Return the next operation's correlation.

        Raises:
            ProtocolError: the program asks for another one than it planned.
        """
        operation = self._part.next_operation - self._first
        planned = self._plan[operation] if operation < len(self._plan) else None
        if planned != request:
            raise ProtocolError(
                f"program: operation {operation} was planned as {planned and planned.kind}, now {request.kind} is"
                " asked for",
                "let the program do the same whatever its values are",
            )
        if operation >= self._n_here:
            self._receive()
        return self._part.take(request)

    def _receive(self) -> None:
        """Take what belongs to the next operation: from the dealer, or what the model owner passes on."""
        request, operation = self._plan[self._n_here], self._first + self._n_here
        if self._rank == MODEL_OWNER:
            self.bytes_from_dealer += self._dealer.receive(self._frames, [request], operation, self._keep)
            if is_shared(request):
                self._channel.send(self._part.passed_on(operation))
        elif is_shared(request):
            self._part.put(operation, request, self._channel.receive(correction_specs(request)))
        self._n_here += 1

    def _keep(self, operation: int, request: Request, correction: list[torch.Tensor]) -> None:
        self._audit.note(operation, correction)
        self._part.put(operation, request, correction)


def n_fitting(plan: list[Request], pool_bytes: int) -> int:
    """Return how many of a plan's first correlations wait in a pool of this size. Both owners count alike."""
    for n, request in enumerate(plan):
        pool_bytes -= kept_bytes(request)
        if pool_bytes < 0:
            return n
    return len(plan)
