"""The model owner in a session: does what the data owner's instructions say, within its own limits."""

import threading
import time
from collections.abc import Callable

import torch

from mpcformer.channel import Spec
from mpcformer.engines.base import BatchInputs, BatchShape
from mpcformer.errors import MPCFormerError, ProtocolError
from mpcformer.ring.random import scoped_keys
from parties.session.failure import as_known
from parties.session.instructions import GRANTED, MOST_PLANNED, Verb, answer, next_instruction
from parties.session.owner_session import Dealt, OwnerSession
from parties.settings.logs import session_log
from parties.stubs import parties_pb2 as pb
from parties.wire.peer_channel import PeerChannel

# How long the dealing of a batch waits for room, which a question makes that is on its way on the other stream.
ROOM_TIMEOUT_S = 30.0
# How often a wait asks whether the session still stands.
POLL_S = 0.5


class ModelSide:
    """Serves the two streams of a session.

    Args:
        session: the session, after its set-up.
        positions: the number of positions of the model.
        max_sentences: the largest number of sentences in a batch, from the job.
        max_tokens: the largest number of tokens in a batch with padding, from the configuration.
        pool_bytes: the most bytes of corrections that wait, from the configuration.
        charge: counts the sentences of a batch; returns 0, or what the data owner is told instead, see `Budget`.
        done: called with the measurements of each batch.
    """

    def __init__(
        self,
        session: OwnerSession,
        *,
        positions: int,
        max_sentences: int,
        max_tokens: int,
        pool_bytes: int,
        charge: Callable[[int], int],
        done: Callable[[pb.BatchReport], None],
    ) -> None:
        self._session, self._charge, self._done = session, charge, done
        self._positions, self._max_sentences, self._max_tokens = positions, max_sentences, max_tokens
        self._pool_bytes = pool_bytes
        self._waiting: dict[int, Dealt] = {}
        # The batch that was last put back. The data owner may have begun to fill its room meanwhile: it does not count.
        self._put_back: int | None = None
        # The engine computes one batch at a time, whichever stream it is asked on.
        self._computing = threading.Lock()
        self._n_begun = self._n_dealt = 0
        self._asked_all = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def serve(self) -> None:
        """Serve until the data owner ends both streams.

        Raises:
            MPCFormerError: a stream failed, or an instruction is not allowed.
        """
        self._agree_on_pool()
        dealing = threading.Thread(target=self._deal_in_thread, name="dealing", daemon=True)
        dealing.start()
        try:
            try:
                self._ask()
            finally:
                with self._changed:
                    self._asked_all = True
                    self._changed.notify_all()
            dealing.join()
        except MPCFormerError as error:
            # Dealing may have failed first and ended this stream.
            raise self._error or error from None
        if self._error is not None:
            raise self._error

    def _agree_on_pool(self) -> None:
        """Take the smaller number of both owners: they must agree on which batches are too large to wait."""
        asking = self._session.asking
        asking.send([torch.tensor([self._pool_bytes])])
        theirs = int(asking.receive([Spec(torch.int64, (1,))])[0])
        if not 1 <= theirs <= self._pool_bytes:
            raise ProtocolError(f"the data owner's pool of {theirs} bytes is outside 1..{self._pool_bytes}")
        self._pool_bytes = theirs

    def _deal_in_thread(self) -> None:
        job = self._session.job
        try:
            with session_log(job.session_id), scoped_keys("dealing", job.session_id):
                self._deal()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            known = as_known(error, self._session.config.id)
            self._session.tell(known)
            self._session.asking.abort(known)

    def _deal(self) -> None:
        session = self._session
        while True:
            verb, (first, second, n_told) = next_instruction(session.dealing, Verb.DEAL, Verb.FORGET, Verb.COMPUTE)
            if verb == Verb.END:
                return
            if verb == Verb.FORGET:
                with self._changed:
                    self._waiting.pop(first, None)
                    self._changed.notify_all()
                continue
            shape = self._checked(first, second)
            if verb == Verb.COMPUTE:
                word = self._charged(shape, n_told)
                answer(session.dealing, word)
                if word == GRANTED:
                    inputs = BatchInputs(received_mask(session.dealing, shape), n_told=n_told)
                    with self._computing:
                        self._done(session.deal_and_compute(inputs, self._pool_bytes)[0])
                continue
            self._require_room(session.size_of(shape))
            with self._changed:
                self._n_begun += 1
            session.deal(shape, begun=self._keep)

    def _keep(self, dealt: Dealt) -> None:
        """Keep a batch that may be asked for from now on."""
        with self._changed:
            self._waiting[self._n_dealt] = dealt
            self._n_dealt += 1
            self._changed.notify_all()

    def _require_room(self, n_bytes: int) -> None:
        """Wait for room. The data owner takes a batch and fills its room, but says so on two streams."""

        def needed() -> int:
            return n_bytes + sum(dealt.n_bytes for i, dealt in self._waiting.items() if i != self._put_back)

        deadline = time.monotonic() + ROOM_TIMEOUT_S
        with self._changed:
            # What is larger than the pool, or comes after the last question, waits in vain.
            while needed() > self._pool_bytes >= n_bytes and not self._asked_all and time.monotonic() < deadline:
                self._session.check()
                self._changed.wait(POLL_S)
            found = needed()
        if found <= self._pool_bytes:
            return
        raise ProtocolError(
            f"the data owner asked for {found / 2**20:.0f} MiB of correlations ahead, pool_mib allows"
            f" {self._pool_bytes / 2**20:.0f}"
        )

    def _ask(self) -> None:
        session, n_planned = self._session, 0
        while True:
            verb, (number, n_told, _) = next_instruction(session.asking, Verb.ASK, Verb.PLAN)
            if verb == Verb.END:
                return
            if verb == Verb.PLAN:
                # A plan costs nothing of the budget, and what is not allowed is refused when it is dealt.
                if n_planned < MOST_PLANNED and self._is_allowed(number, n_told):
                    session.size_of(BatchShape(number, n_told))  # which plans it
                    n_planned += 1
                continue
            n_planned = 0
            dealt = self._taken(number)
            word = self._charged(dealt.shape, n_told)
            if word != GRANTED:
                # It was not used: the same batch may be asked with once there is a budget again. It is there before the
                # data owner hears of it, and may forget it on the other stream.
                with self._changed:
                    self._waiting[number], self._put_back = dealt, number
            answer(session.asking, word)
            if word == GRANTED:
                inputs = BatchInputs(received_mask(session.asking, dealt.shape), n_told=n_told)
                with self._computing:
                    self._done(session.compute(dealt, inputs)[0])

    def _taken(self, number: int) -> Dealt:
        """Take a batch that was dealt, or is being dealt. The data owner may have begun with it a little earlier."""
        with self._changed:
            while self._n_dealt <= number < self._n_begun and self._error is None:
                self._session.check()
                self._changed.wait(POLL_S)
            if self._error is not None:
                raise self._error
            dealt = self._waiting.pop(number, None)
            self._changed.notify_all()
        if dealt is None:
            raise ProtocolError(f"the data owner asked with batch {number}, which does not wait: each is used once")
        return dealt

    def _charged(self, shape: BatchShape, n_told: int) -> int:
        """Charge the sentences of a batch that are asked about; return the answer that the data owner is to get."""
        if not 1 <= n_told <= shape.batch_size:
            raise ProtocolError(f"the data owner asked for {n_told} answers of a batch of {shape.batch_size}")
        return self._charge(n_told)

    def _is_allowed(self, batch_size: int, seq_len: int) -> bool:
        fits = 1 <= batch_size <= self._max_sentences and 1 <= seq_len <= self._positions
        return fits and batch_size * seq_len <= self._max_tokens

    def _checked(self, batch_size: int, seq_len: int) -> BatchShape:
        if not self._is_allowed(batch_size, seq_len):
            raise ProtocolError(
                f"the data owner announced a batch of {batch_size} x {seq_len} tokens; the model has {self._positions}"
                f" positions, the job's batches have {self._max_sentences} sentences, max_batch_tokens is"
                f" {self._max_tokens}"
            )
        return BatchShape(batch_size, seq_len)


def received_mask(channel: PeerChannel, shape: BatchShape) -> torch.Tensor:
    """Receive the attention mask of a batch: (B, L), ones followed by zeros in each row."""
    mask = channel.receive([Spec(torch.int64, (shape.batch_size, shape.seq_len))])[0]
    lengths = mask.sum(1)
    if not torch.equal(mask, (torch.arange(shape.seq_len) < lengths[:, None]).long()) or int(lengths.min()) < 1:
        raise ProtocolError("the data owner's mask is not ones followed by zeros")
    return mask
