"""The data owner in a session: joins the model owner's two streams, fills the pool, and asks."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.engines.base import DATA_OWNER, BatchInputs, BatchShape, Outcome, PublicModel
from mpcformer.engines.registry import create_engine
from mpcformer.errors import MPCFormerError, PartyError
from parties.session.failure import as_known, telling
from parties.session.instructions import GRANTED, MOST_PLANNED, Verb, receive_answer, tell
from parties.session.membership import Membership
from parties.session.owner_session import Dealt, OwnerSession
from parties.session.pool import Pool
from parties.session.seen import Seen, Tap
from parties.settings import metrics
from parties.settings.config import DataOwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER
from parties.wire.frames import open_channel, wait_until_ready
from parties.wire.peer_channel import ASKING, DEALING, PeerChannel

Tell = Callable[[int, int], None]


class BudgetError(MPCFormerError):
    """An error because a data owner may ask no more, today or at all. The session goes on.

    Args:
        model_owner: the id of the model owner.
        word: the seconds until there is a new budget, or NEVER.

    Attributes:
        seconds: how long it takes until there is a new budget; None if no day brings one.
    """

    exit_code = 8

    def __init__(self, model_owner: str, word: int) -> None:
        if word < 0:
            what = "the budget of sentences does not allow this question, and no day brings a larger one"
            remedy = "ask the model owner for a larger max_sentences, or fewer texts in a batch"
        else:
            hours, minutes = divmod(-(-word // 60), 60)
            what = "the budget of sentences for today is used up"
            remedy = f"ask again in {hours} h {minutes} min, or ask the model owner for a larger max_sentences_per_day"
        super().__init__(f"{model_owner}: {what}", remedy)
        self.seconds = None if word < 0 else word


@dataclass
class Asked:
    """What came of a batch.

    Args:
        outcome: who was refused, and the logits of the others.
        report: what the batch took.
        was_ready: whether its correlations were waiting.
        bytes_sent, bytes_received: the frames of the online part, at the data owner.
        seen: what the other parties saw, if somebody wanted to know.
    """

    outcome: Outcome
    report: pb.BatchReport
    was_ready: bool
    bytes_sent: int
    bytes_received: int
    seen: Seen | None = None

    def __repr__(self) -> str:
        return f"Asked({self.outcome})"


class DataSide:
    """The data owner's side of one session, from its set-up on.

    Args:
        config: the data owner's configuration.
        job: the job, as it was ordered.
        membership: the connection to whoever ordered the session.
        public: what is public of the model.
        student: hex SHA-256 of the weights, from the public files.
    """

    def __init__(
        self, config: DataOwnerConfig, job: pb.Job, membership: Membership, public: PublicModel, student: str
    ) -> None:
        started = time.perf_counter()
        public = replace(public, embeddings=job.embeddings)
        self._config, self._job = config, job
        # Held while somebody asks.
        self._stream_in_use = threading.Lock()
        self._link = open_channel(job.model_owner_address, job.model_owner, config.credentials)
        address, timeout_s = job.model_owner_address, config.join_timeout_s
        wait_until_ready(self._link, job.model_owner, address, timeout_s, membership.check)
        # A program that asks may fail and try again for days: nothing must stay of a session that does not begin.
        with ExitStack() as undo, telling(membership):
            undo.callback(self._link.close)
            asking, dealing = (self._stream(name, membership) for name in (ASKING, DEALING))
            for channel in (asking, dealing):
                undo.callback(channel.abort, PartyError(config.id, "it left the session"))
            self.session = OwnerSession(
                rank=DATA_OWNER, config=config, job=job, asking=asking, dealing=dealing, membership=membership
            )
            undo.callback(self.session.close)
            engine = create_engine(
                job.engine,
                rank=DATA_OWNER,
                public=public,
                channel=asking,
                weights=None,
                session_id=self.session.drawn_id,
            )
            self.session.setup(engine, public, student, started)
            allowed = int(asking.receive([Spec(torch.int64, (1,))])[0])
            self.pool_bytes = min(allowed, config.pool_mib << 20)
            asking.send([torch.tensor([self.pool_bytes])])
            self.pool = Pool(
                deal=self._deal,
                forget=lambda number: tell(dealing, Verb.FORGET, number),
                size_of=self.session.size_of,
                limit_bytes=self.pool_bytes,
                threads=config.threads,
                # Whoever asks then fails too, and waits for the orderer to name the first cause.
                on_failure=lambda error: self._dealing_failed(as_known(error, config.id)),
            )
            membership.on_abort(lambda error: self.pool.drop())
            undo.pop_all()

    def _dealing_failed(self, error: MPCFormerError) -> None:
        self.session.tell(error)
        self.session.asking.abort(error)

    def _stream(self, name: str, membership: Membership) -> PeerChannel:
        config, job = self._config, self._job
        channel = PeerChannel(party_id=config.id, peer_id=job.model_owner, session_id=job.session_id, stream=name)
        metadata = [(SESSION_HEADER, job.session_id), (STREAM_HEADER, name)]
        call: grpc.Call = rpc.PeerStub(self._link).Exchange(channel.outgoing(), metadata=metadata)
        channel.attach(call, call.cancel)
        membership.on_abort(channel.abort)
        membership.watch(job.model_owner, channel.waited_s)
        return channel

    def _deal(self, shape: BatchShape, pause: Callable[[], None], begun: Callable[[Dealt], None]) -> None:
        tell(self.session.dealing, Verb.DEAL, shape.batch_size, shape.seq_len)
        self.session.deal(shape, pause, begun)

    def coming(self, shapes: Sequence[BatchShape]) -> None:
        """Do as `Pool.coming`, after the model owner was told what to plan."""
        self._announce(shapes)
        self.pool.coming(shapes)

    def stock_only(self, shapes: Sequence[BatchShape], n: int) -> None:
        """Do as `Pool.stock_only`, after the model owner was told what to plan."""
        self._announce(shapes if n else [])
        self.pool.stock_only(shapes, n)

    def deal_and_seal(self, shapes: Sequence[BatchShape]) -> None:
        """Do as `Pool.deal_and_seal`, after the model owner was told what to plan.

        Raises:
            UserInputError: so many do not fit into the pool.
        """
        self._announce(shapes)
        self.pool.deal_and_seal(shapes)

    def _announce(self, shapes: Sequence[BatchShape]) -> None:
        """Tell the model owner which new shapes this owner plans first now, so that both plan them at once.

        Nothing depends on it: while somebody asks, it cannot be sent, and the model owner plans when a batch is dealt.
        """
        if not self._stream_in_use.acquire(blocking=False):
            return
        new = [shape for shape in dict.fromkeys(shapes) if not self.session.is_planned(shape)]
        try:
            # Whoever asks next hears why the stream has ended, if it has.
            with suppress(MPCFormerError):
                for shape in new[:MOST_PLANNED]:
                    tell(self.session.asking, Verb.PLAN, shape.batch_size, shape.seq_len)
        finally:
            self._stream_in_use.release()

    def ask(
        self, inputs: BatchInputs, n_told: int, tell_progress: Tell = lambda done, of: None, *, seen: bool = False
    ) -> Asked:
        """Compute one batch.

        Args:
            inputs: the batch.
            n_told: how many of its first sentences are asked about; the others only fill the batch.
            tell_progress: called after each segment, with how many are done and how many there are.
            seen: whether to note what the other parties see.

        Raises:
            BudgetError: the model owner answers no more today; nothing was computed, and the session goes on.
            UserInputError: the dealer has left, and no batch of this shape waits.
        """
        inputs = replace(inputs, n_told=n_told)
        self._announce([inputs.shape])
        if not self.pool.fits(inputs.shape):
            return self._compute_in_parts(inputs, n_told, tell_progress, seen)
        with self._stream_in_use:
            return self._ask(inputs, n_told, tell_progress, seen)

    def _ask(self, inputs: BatchInputs, n_told: int, tell_progress: Tell, seen: bool) -> Asked:
        channel = self.session.asking
        # From here on nothing is dealt for the stock, so that the batch is not computed beside it.
        with self.pool.asking():
            number, dealt, was_ready = self.pool.take(inputs.shape)
            if not self._job.overlap:
                dealt.wait(dealt.n_segments, self.session.check)
            metrics.asked_batches.labels(metrics.AHEAD if was_ready else metrics.LATE).inc()
            before = channel.counters.copy()
            tell(channel, Verb.ASK, number, n_told)
            try:
                self._hand_over(channel, inputs)
            except BudgetError:
                self.pool.put_back(number, dealt)
                raise
            with self._tapped(channel, seen) as tap, tap.online() if tap else nullcontext():
                report, outcome = self.session.compute(dealt, inputs, tell_progress)
            done = channel.counters.minus(before)
        return Asked(outcome, report, was_ready, done.bytes_sent, done.bytes_received, self._seen(tap, inputs.shape))

    @contextmanager
    def _tapped(self, channel: PeerChannel, wanted: bool) -> Iterator[Tap | None]:
        """Note what is sent in the online part, if that is wanted. The mask of the batch is public, and sent before."""
        channel.tap = tap = Tap(channel.counters) if wanted else None
        try:
            yield tap
        finally:
            channel.tap = None

    def _seen(self, tap: Tap | None, shape: BatchShape) -> Seen | None:
        return None if tap is None else tap.seen(self.session.engine.plan(shape))

    def _compute_in_parts(self, inputs: BatchInputs, n_told: int, tell_progress: Tell, seen: bool) -> Asked:
        channel, found = self.session.dealing, []
        metrics.asked_batches.labels(metrics.LATE).inc()

        def work() -> None:
            before = channel.counters.copy()
            tell(channel, Verb.COMPUTE, inputs.shape.batch_size, inputs.shape.seq_len, n_told)
            self._hand_over(channel, inputs)
            with self._tapped(channel, seen) as tap:
                online = tap.online if tap else nullcontext
                report, outcome = self.session.deal_and_compute(inputs, self.pool_bytes, tell_progress, online)
            done = channel.counters.minus(before)
            shown = self._seen(tap, inputs.shape)
            found.append(Asked(outcome, report, False, done.bytes_sent, done.bytes_received, shown))

        self.pool.alone(work)
        return found[0]

    def _hand_over(self, channel: PeerChannel, inputs: BatchInputs) -> None:
        """Wait for the model owner's consent, and send it the mask of a batch."""
        word = receive_answer(channel)
        if word != GRANTED:
            raise BudgetError(self._job.model_owner, word)
        channel.send([inputs.attention_mask])

    def end(self) -> None:
        """End both streams; the model owner leaves the session."""
        self.pool.close()
        for channel in (self.session.dealing, self.session.asking):
            tell(channel, Verb.END)

    def close(self) -> None:
        """Close the connection, after the session."""
        self.pool.drop()
        for channel in (self.session.dealing, self.session.asking):
            channel.finish()
        self.session.close()
        self._link.close()
