"""An owner's connection to the dealer: its seed, and at the model owner the corrections of one plan after the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
import torch

from mpcformer.correlations import Request, correction_specs
from mpcformer.errors import PartyError, ProtocolError
from parties.settings.config import Credentials
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.correlation_requests import to_wire
from parties.wire.frame import Frame
from parties.wire.frames import StreamEndedError, from_frames, open_channel

# Takes the index of an operation, what it is for, and its correction.
Keep = Callable[[int, Request, list[torch.Tensor]], None]


class DealerLink:
    """The connection of one session. Its errors name the dealer.

    Args:
        dealer: the dealer's party id.
        address: where it listens.
        credentials: this owner's.
        session_id: the id of the session, as it was ordered.
    """

    def __init__(self, dealer: str, address: str, credentials: Credentials, session_id: bytes) -> None:
        self._id, self._address, self._session_id = dealer, address, session_id
        self._channel = open_channel(address, dealer, credentials)
        self._stub = rpc.DealerStub(self._channel)
        self._asked_at: float | None = None

    def open(self, timeout_s: float) -> pb.OpenSessionReply:
        """Join the session: return this owner's seed and what the dealer shows as evidence of its code.

        Raises:
            PartyError: the dealer cannot be reached within so many seconds, or refuses.
        """
        try:
            reply: pb.OpenSessionReply = self._stub.OpenSession(
                iter([pb.OpenSessionRequest(session_id=self._session_id)]), timeout=timeout_s, wait_for_ready=True
            )
            return reply
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise causes.unreachable(self._id, self._address, timeout_s) from None
            raise causes.of_call(self._id, error) from None

    @contextmanager
    def dealing(
        self, plan: Sequence[Request], *, drawn_id: bytes, batch_operation: int, first: int
    ) -> Iterator[Iterator[Frame]]:
        """Ask for the corrections of a plan, at the model owner, and give the frames in which they come.

        The dealer goes on while what has come is used, as far as the stream lets it.

        Args:
            plan: the operations.
            drawn_id: what both owners have drawn for the session.
            batch_operation: the index of the batch's first operation.
            first: the index of the plan's first operation.

        Raises:
            PartyError: the call failed, or the dealer dealt more than the plan.
        """
        request = pb.DealRequest(
            session_id=self._session_id,
            drawn_id=drawn_id,
            first_operation=first,
            batch_operation=batch_operation,
            plan=[to_wire(item) for item in plan],
        )
        with self._blaming():
            call = self._stub.Deal(iter([request]))
        try:
            frames = self._noting_when(call)
            yield frames
            with self._blaming():
                if next(frames, None) is not None:
                    raise PartyError(self._id, "it dealt more than the plan")
        finally:
            self._asked_at = None
            call.cancel()

    def receive(self, frames: Iterator[Frame], plan: Sequence[Request], first: int, keep: Keep) -> int:
        """Receive the corrections of a part of a plan; return how many bytes they were.

        Args:
            frames: see `dealing`.
            plan: the part, whose first operation is `first`.
            keep: called with each correction.

        Raises:
            PartyError: the dealer left, dealt less than the plan, or sent something else.
        """
        received = 0
        with self._blaming():
            for operation, item in enumerate(plan, start=first):
                correction, n_bytes = from_frames(
                    frames,
                    correction_specs(item),
                    session_id=self._session_id,
                    sender=self._id,
                    operation=operation,
                )
                keep(operation, item, correction)
                received += n_bytes
        return received

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """Turn what can go wrong with the dealer's stream into an error that names the dealer."""
        try:
            yield
        except grpc.RpcError as error:
            raise causes.of_call(self._id, error) from None
        except StreamEndedError:
            raise PartyError(self._id, "it dealt less than the plan") from None
        except ProtocolError as error:
            raise PartyError(self._id, error.what, error.remedy) from None

    def _noting_when(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        self._asked_at = time.monotonic()
        try:
            for frame in frames:
                self._asked_at = None
                yield frame
                self._asked_at = time.monotonic()
        finally:
            self._asked_at = None

    def waited_s(self) -> float:
        """Return for how many seconds the dealer has not sent what it was asked for; 0 if nothing is awaited."""
        since = self._asked_at
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """End all calls and the connection; nothing happens the second time."""
        self._channel.close()
