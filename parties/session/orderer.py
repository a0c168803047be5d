"""Orders a session from dealer and model owner, watches all parties, and tells them how it ends.

A coordinator does this for an evaluation, and a data owner for its own session. When a session breaks, the orderer
weighs all evidence that arrives within a short grace time (evidence.py). It sees no share and no weight.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import grpc

from mpcformer import __version__
from mpcformer.errors import UNEXPECTED, MPCFormerError, PartyError
from mpcformer.ring.random import fresh_key
from parties.session.evidence import Evidence, Weight
from parties.session.membership import SILENCE_S
from parties.session.party_state import PartyState, greeting_error
from parties.settings.config import Common, Credentials, Insecure, PeerAddress
from parties.settings.insecure import text as insecure_text
from parties.settings.job import JobDescription, ProgramJob
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.frames import open_channel, wait_until_ready

GRACE_S = 1.5
# What a party reports of a failure is a sentence: more is not accepted.
MAX_TEXT = 1000
EXIT_CODES = (*range(1, 9), UNEXPECTED)
LEAVE_TIMEOUT_S = 3.0
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Order:
    """Who orders a session, from whom, and for whom.

    Args:
        id: the id of the party that orders.
        dealer, model_owner: the services.
        data_owner: the id of the data owner, which may be the party that orders.
        credentials: of the party that orders.
        insecure: the insecure settings in its configuration.
        join_timeout_s: how long to wait for the parties.
        job: what the parties compute.
        ready_timeout_s: how long the services may take to get ready for the job; None stands for `join_timeout_s`.
    """

    id: str
    dealer: PeerAddress
    model_owner: PeerAddress
    data_owner: str
    credentials: Credentials
    insecure: Insecure | None
    join_timeout_s: float
    job: JobDescription | ProgramJob
    ready_timeout_s: float | None = None

    @classmethod
    def of(
        cls,
        config: Common,
        dealer: PeerAddress,
        model_owner: PeerAddress,
        *,
        data_owner: str,
        job: JobDescription | ProgramJob,
        ready_timeout_s: float | None = None,
    ) -> "Order":
        """Return the order of the party with this configuration."""
        return cls(
            id=config.id,
            dealer=dealer,
            model_owner=model_owner,
            data_owner=data_owner,
            credentials=config.credentials,
            insecure=config.insecure,
            join_timeout_s=config.join_timeout_s,
            job=job,
            ready_timeout_s=ready_timeout_s,
        )


class Orderer:
    """Orders one session and watches it (`run`).

    Args:
        order: who orders what from whom.
        route: maps the address of a party to the address under which the owners reach it, such as a relay's.
    """

    def __init__(self, order: Order, *, route: Callable[[str], str] = lambda address: address) -> None:
        self.asked, self._route = order, route
        self.members = {
            order.dealer.id: PartyState("dealer"),
            order.model_owner.id: PartyState("model-owner"),
            order.data_owner: PartyState("data-owner"),
        }
        self.by_role = {member.role: member for member in self.members.values()}
        # The lock is re-entrant, because handlers that hold it add evidence.
        self.changed = threading.Condition(threading.RLock())
        self._evidence = Evidence()
        self._channels: list[grpc.Channel] = []
        self._readers: list[threading.Thread] = []
        self.finishing = False

    def new_job(
        self, *, first_batch: int = 0, batch_plan: bytes = b"", end_batch: int = 0, first_operation: int = 0
    ) -> pb.Job:
        """Return the job with a session id of its own.

        Args:
            first_batch, batch_plan: of a run that is resumed, see the message `Job`.
            end_batch, first_operation: of a part of a job.
        """
        order = self.asked
        return pb.Job(
            session_id=fresh_key(),
            dealer=order.dealer.id,
            model_owner=order.model_owner.id,
            data_owner=order.data_owner,
            dealer_address=self._route(order.dealer.address),
            model_owner_address=self._route(order.model_owner.address),
            **order.job.message_fields(),
            first_batch=first_batch,
            batch_plan=batch_plan,
            end_batch=end_batch,
            first_operation=first_operation,
            release=__version__,
        )

    def attach(self, party_id: str, events: Iterator[pb.PartyEvent]) -> None:
        """Take a party in, which has joined by itself: a thread reads its events. Its commands are in its state."""
        with self.changed:
            self._joined(party_id)
        self._start_reader(self._read, party_id, events)

    def has_joined(self, party_id: str) -> bool:
        """Return whether a party is connected."""
        return self.members[party_id].joined

    def accuse(self, party_id: str, what: str) -> None:
        """Take evidence from outside the streams: the process of a party ended with a failure.

        The end of a party that has reported a failure before is a consequence and explains nothing.
        """
        with self.changed:
            reported = party_id in self.members and self.members[party_id].reported_failure
            if not self.finishing and not reported:
                self.blame(Weight.EXITED, PartyError(party_id, what))

    def run(
        self,
        job: pb.Job,
        done: Callable[[], bool],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Order the session, wait for its end, and dismiss all parties.

        Args:
            job: what the parties shall compute.
            done: returns whether the session's work is done; called with the lock held.
            ready: called when dealer and model owner are ready, before the data owner gets its job.

        Raises:
            MPCFormerError: the first cause of a failure; the error names the party.
            OSError: `done` could not write.
        """
        fault = ""
        try:
            for peer in (self.asked.dealer, self.asked.model_owner):
                self._connect(peer)
            self._wait(lambda: all(m.joined for m in self.members.values()), "did not join", lambda m: m.joined)
            # The dealer must know the session before an owner asks for a seed, and the model owner before the data
            # owner calls it.
            self._order(self.by_role["dealer"], for_dealer(job))
            self._order(self.by_role["model-owner"], job)
            ready()
            self.by_role["data-owner"].commands.put(pb.Command(job=job))
            self._wait(done)
            self.check_end()
            self._finish()
        except MPCFormerError as error:
            self.blame(Weight.ACCUSED, error)
            raise
        except OSError as error:
            fault = f"cannot write the journal: {error.strerror}"
            raise
        except KeyboardInterrupt:
            fault = "it was interrupted"
            raise
        except Exception:
            fault = "it failed"
            raise
        finally:
            self._dismiss(fault)

    def check_end(self) -> None:
        """Check what the parties reported at the end; raises PartyError if something does not fit."""

    def _finish(self) -> None:
        """Dismiss the dealer, which reports when it has ended the session."""
        with self.changed:
            self.finishing = True
            self.changed.notify_all()
        self.by_role["dealer"].commands.put(pb.Command(finish=pb.Finish()))
        with self.changed:
            self.changed.wait_for(lambda: self.by_role["dealer"].report is not None, timeout=LEAVE_TIMEOUT_S)

    def let_dealer_leave(self) -> None:
        """Dismiss the dealer while the owners go on, and wait until it has ended the session and forgotten its seeds.

        Raises:
            PartyError: it did not leave in time.
        """
        dealer = self.by_role["dealer"]
        with self.changed:
            dealer.may_leave = True
        dealer.commands.put(pb.Command(finish=pb.Finish()))
        with self.changed:
            self.changed.wait_for(lambda: dealer.report is not None, timeout=LEAVE_TIMEOUT_S)
            if dealer.report is None:
                raise PartyError(self.asked.dealer.id, f"did not leave within {LEAVE_TIMEOUT_S:.0f} s")
        dealer.commands.put(None)

    def _order(self, member: PartyState, job: pb.Job) -> None:
        member.commands.put(pb.Command(job=job))
        self._wait(
            lambda: member.ready is not None,
            "did not get ready",
            lambda other: other is not member or member.ready is not None,
            self.asked.ready_timeout_s,
        )

    def stop(self) -> None:
        """End all streams, after the parties had time to read the last command."""
        for member in self.members.values():
            member.commands.put(None)
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        for thread in self._readers:
            thread.join(max(0.0, deadline - time.monotonic()))
        for channel in self._channels:
            channel.close()

    def _connect(self, peer: PeerAddress) -> None:
        channel = open_channel(peer.address, peer.id, self.asked.credentials)
        self._channels.append(channel)
        self._start_reader(self._serve, peer, channel)

    def _start_reader(self, read: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=read, args=arguments, name="events", daemon=True)
        self._readers.append(thread)
        thread.start()

    def _serve(self, peer: PeerAddress, channel: grpc.Channel) -> None:
        """Run the stream to a service, as its client."""
        try:
            wait_until_ready(channel, peer.id, peer.address, self.asked.join_timeout_s, self._check_not_over)
            with self.changed:
                self._joined(peer.id)
            # The first command is the job, or None if another party never came.
            first = self.members[peer.id].commands.get()
            if first is None:
                return
            events = rpc.PartyStub(channel).Serve(chain([first], self.members[peer.id].outgoing()))
        except PartyError:
            return  # There was no answer, which `_wait` reports, or the session ended meanwhile.
        self._read(peer.id, events)

    def _check_not_over(self) -> None:
        if self.finishing:
            raise PartyError(self.asked.id, "the session has ended")

    def _joined(self, party_id: str) -> None:
        self.members[party_id].joined, self.members[party_id].last_seen = True, time.monotonic()
        self.changed.notify_all()

    def _wait(
        self,
        done: Callable[[], bool],
        what: str = "",
        has: Callable[[PartyState], bool] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Wait for `done`; raise on evidence of a failure, and if a party is silent or late.

        Args:
            done: returns whether the wait is over.
            what: what a late party did not do.
            has: returns whether a party has done that; without it no party can be late.
            timeout_s: when a party is late; None stands for the configured time.
        """
        timeout_s = self.asked.join_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while not done() or self._evidence:
                if self._evidence:
                    self.changed.wait_for(lambda: False, timeout=GRACE_S)
                    raise self._evidence.verdict()
                self.changed.wait(0.25)
                now = time.monotonic()
                for party_id, member in self.members.items():
                    silent = member.ready is not None or member.role == "data-owner"
                    present = member.joined and not member.left and not member.may_leave
                    if present and silent and now - member.last_seen > SILENCE_S:
                        self.blame(Weight.VANISHED, causes.silent(party_id, SILENCE_S))
                    if has is not None and not has(member) and now > deadline:
                        self.blame(Weight.VANISHED, self._late(party_id, what, timeout_s))

    def _late(self, party_id: str, what: str, timeout_s: float) -> PartyError:
        """Return the error for a party that did not do its part in time."""
        config = self.asked
        addresses = {config.dealer.id: config.dealer.address, config.model_owner.id: config.model_owner.address}
        if party_id in addresses and not self.members[party_id].joined:
            return causes.unreachable(party_id, addresses[party_id], config.join_timeout_s)
        return PartyError(
            party_id,
            f"{what} within {timeout_s:.0f} s",
            "start it; if it runs, mpcformer doctor --config on both machines tells what is between them",
        )

    def _dismiss(self, fault: str) -> None:
        """Tell all parties to leave, and after a failure also why."""
        with self.changed:
            self.finishing = True
            self.changed.notify_all()
            if not self._evidence and fault:
                self.blame(Weight.VANISHED, PartyError(self.asked.id, fault))
            ending = pb.Command(abort=self._evidence.told()) if self._evidence else pb.Command(finish=pb.Finish())
        for member in self.members.values():
            member.commands.put(ending)
            member.commands.put(None)

    def _read(self, party_id: str, events: Iterator[pb.PartyEvent]) -> None:
        try:
            for event in events:
                self._handle(party_id, event)
            self.gone(party_id)
        except Exception as error:  # The stream of a client raises RpcError, that of a server a bare Exception.
            if causes.is_refusal(error) or causes.is_own_failure(error):
                with self.changed:
                    self.members[party_id].left = True
                    if not self.finishing:
                        self.blame(Weight.CONFESSED, causes.of_call(party_id, error))
            self.gone(party_id)

    def take(self, party_id: str, member: PartyState, event: pb.PartyEvent) -> None:
        """Take an event that only some orderers use: a batch or progress. The lock is held."""

    def _handle(self, party_id: str, event: pb.PartyEvent) -> None:
        member = self.members[party_id]
        kind = event.WhichOneof("event")
        with self.changed:
            member.last_seen = time.monotonic()
            if kind == "hello":
                error = greeting_error(party_id, member.role, event.hello, insecure_text(self.asked.insecure))
                if error is not None:
                    self.blame(Weight.CONFESSED, error)
            elif kind == "ready":
                member.ready = event.ready
            elif not digests_are_short(event):
                self.blame(Weight.CONFESSED, PartyError(party_id, "it sent more than a digest where a digest belongs"))
            elif kind == "report":
                member.report = event.report
            elif kind == "failure":
                self._failure(party_id, event.failure)
            else:
                self.take(party_id, member, event)
            self.changed.notify_all()

    def _failure(self, party_id: str, failure: pb.Failure) -> None:
        self.members[party_id].left = self.members[party_id].reported_failure = True
        error = PartyError(*(text[:MAX_TEXT] for text in (failure.culprit, failure.what, failure.remedy)))
        if failure.exit_code in EXIT_CODES:
            error.exit_code = failure.exit_code
        self.blame(Weight.CONFESSED if failure.culprit == party_id else Weight.ACCUSED, error, party_id)

    def gone(self, party_id: str) -> None:
        """Note that the stream of a party has ended."""
        with self.changed:
            member = self.members[party_id]
            if not member.left and not member.may_leave and not self.finishing:
                self.blame(Weight.VANISHED, causes.connection_ended(party_id))
            member.left = True

    def blame(self, weight: Weight, error: MPCFormerError, by: str = "") -> None:
        """Add a piece of evidence about a failure; `by` is the party that accuses another one, if one does."""
        with self.changed:
            self._evidence.add(weight, error, by)
            self.changed.notify_all()


def for_dealer(job: pb.Job) -> pb.Job:
    """Return what the dealer is told of a job: who takes part, and the number of its first operation.

    It need not know what is asked, nor of which model.
    """
    return pb.Job(
        session_id=job.session_id,
        dealer=job.dealer,
        model_owner=job.model_owner,
        data_owner=job.data_owner,
        release=job.release,
        first_operation=job.first_operation,
    )


def digests_are_short(event: pb.PartyEvent) -> bool:
    """Return whether all byte strings of an event are as short as digests. Longer ones could carry a secret."""
    found = (event.report.transcript, event.report.batch_plan, event.batch.batch_plan, event.batch.terms)
    return all(len(digest) in (0, DIGEST_BYTES) for digest in found)
