"""gRPC channels and servers with one set of options, and messages cut into frames.

A message (a list of tensors) becomes frames of at most 1 MiB: gRPC refuses more than 4 MiB, and small frames let both
directions move at the same time. The receiver knows which message comes next. It checks each frame against that
expectation before it keeps any byte, and allocates memory for the expectation, never for what a header claims.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Failures are reported in our own words (causes.py); gRPC's log lines would stand between them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import torch

from mpcformer.channel import Spec
from mpcformer.errors import ProtocolError, UserInputError
from parties.settings.config import Credentials, Plaintext
from parties.stubs import parties_pb2 as pb
from parties.wire import causes, tls
from parties.wire.callers import PARTY_HEADER
from parties.wire.frame import Frame
from parties.wire.guard import MAX_WAITING, Guard, Rules, Workers

FRAME_BYTES = 1 << 20
# How often a wait asks whether it is still of use.
POLL_S = 0.2
# Errors quote at most so many characters or dimensions of what a peer sent.
MAX_SHOWN = 40
# The dtypes that messages may have.
DTYPES = {torch.int64: pb.DTYPE_INT64, torch.uint8: pb.DTYPE_UINT8}

COMMON_OPTIONS = [
    # The TCP connection of a peer that is stopped or cut off stays open: only pings notice, within 4 + 6 s.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 6_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Frames are 1 MiB; anything near gRPC's default of 4 MiB is an attack or a bug.
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
]
CLIENT_OPTIONS = [
    # A call that failed half-way must not be repeated, because correlations are used once.
    ("grpc.enable_retries", 0),
    # Shares must not pass through a proxy that the environment happens to name.
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS = [
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Drop connections whose handshake is not finished in time.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # All sessions of a machine share a connection: each has a few calls at the same time.
    ("grpc.max_concurrent_streams", 512),
    # Do not share a port that is in use: report it.
    ("grpc.so_reuseport", 0),
]


class _ClaimId(grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):  # type: ignore[misc]
    """Writes the caller's id into a header of each call, because there is no certificate that states it."""

    def __init__(self, party_id: str) -> None:
        self._header = (PARTY_HEADER, party_id)

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or ()), self._header]), request)

    intercept_unary_unary = intercept_stream_unary = intercept_stream_stream = _call


class SafeChannel(grpc.Channel):  # type: ignore[misc]
    """A channel that another thread may close at any moment.

    A stub that is made on a closed channel of gRPC ends the whole process with a segmentation fault, and a call on one
    raises a bare ValueError. Here both raise the error for a peer whose connection has ended.

    Args:
        channel: gRPC's own.
        peer_id: the party at the other end.
    """

    def __init__(self, channel: grpc.Channel, peer_id: str) -> None:
        self._channel, self._peer_id = channel, peer_id
        self._lock = threading.Lock()
        self._closed = False

    def _method(self, make: Callable[..., Callable[..., Any]], *arguments: Any, **options: Any) -> Callable[..., Any]:
        with self._lock:
            if self._closed:
                raise causes.connection_ended(self._peer_id)
            method = make(*arguments, **options)

        def call(*given: Any, **named: Any) -> Any:
            try:
                return method(*given, **named)
            except ValueError:
                if self._closed:
                    raise causes.connection_ended(self._peer_id) from None
                raise

        return call

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """Return a method, as gRPC's channel does; PartyError if this one is closed. The other three do likewise."""
        return self._method(self._channel.unary_unary, *arguments, **options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """See `unary_unary`."""
        return self._method(self._channel.unary_stream, *arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """See `unary_unary`."""
        return self._method(self._channel.stream_unary, *arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """See `unary_unary`."""
        return self._method(self._channel.stream_stream, *arguments, **options)

    def subscribe(self, callback: Callable[..., None], try_to_connect: bool = False) -> None:
        """Call `callback` whenever the channel's state changes; never if the channel is closed."""
        with self._lock:
            if not self._closed:
                self._channel.subscribe(callback, try_to_connect=try_to_connect)

    def unsubscribe(self, callback: Callable[..., None]) -> None:
        """Call `callback` no more."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """End all calls and the connection; nothing happens the second time."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._channel.close()

    def __enter__(self) -> "SafeChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_channel(address: str, peer_id: str, credentials: Credentials) -> SafeChannel:
    """Return a mutually authenticated channel to the party `peer_id`; the host name in its address does not matter."""
    options: list[tuple[str, int | str]] = [*COMMON_OPTIONS, *CLIENT_OPTIONS]
    if isinstance(credentials, Plaintext):
        channel = grpc.secure_channel(address, tls.channel_credentials(credentials), options)
        return SafeChannel(grpc.intercept_channel(channel, _ClaimId(credentials.id)), peer_id)
    options += [("grpc.ssl_target_name_override", peer_id), ("grpc.default_authority", peer_id)]
    return SafeChannel(grpc.secure_channel(address, tls.channel_credentials(credentials), options), peer_id)


def wait_until_ready(
    channel: grpc.Channel, peer_id: str, address: str, timeout_s: float, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until the peer answers.

    Args:
        channel: the channel to the peer.
        peer_id, address: the peer.
        timeout_s: how long to wait.
        check: called several times a second; it raises if there is nothing to wait for any more.

    Raises:
        PartyError: the peer did not answer in time; the channel is closed.
    """
    ready, deadline = grpc.channel_ready_future(channel), time.monotonic() + timeout_s
    try:
        while True:
            check()
            try:
                ready.result(timeout=max(0.0, min(POLL_S, deadline - time.monotonic())))
            except grpc.FutureTimeoutError:
                if time.monotonic() < deadline:
                    continue
                raise causes.unreachable(peer_id, address, timeout_s) from None
            return
    except BaseException:
        ready.cancel()
        channel.close()
        raise


def start_server(
    add_services: Callable[[grpc.Server], None], listen: str, credentials: Credentials, *, rules: Rules | None = None
) -> tuple[grpc.Server, str]:
    """Start a server; return it and its HOST:PORT.

    Args:
        add_services: registers the services at the server.
        listen: HOST:PORT; with port 0 the operating system chooses one.
        credentials: the server's own.
        rules: what the methods allow, see `Guard`.

    Raises:
        UserInputError: the server cannot listen on this address.
    """
    guard = Guard(rules or {})
    server = grpc.server(
        Workers(max_workers=guard.n_threads, thread_name_prefix="rpc"),
        interceptors=[guard],
        options=[*COMMON_OPTIONS, *SERVER_OPTIONS],
        maximum_concurrent_rpcs=guard.n_threads + MAX_WAITING,
    )
    add_services(server)
    try:
        port = server.add_secure_port(listen, tls.server_credentials(credentials))
    except RuntimeError:
        port = 0
    if not port:
        raise UserInputError(f"cannot listen on {listen}", "the port is in use or the address is not this machine's")
    server.start()
    return server, f"{listen.rpartition(':')[0]}:{port}"


class StreamEndedError(ProtocolError):
    """The peer ended its stream in the middle of a message."""


def to_frames(tensors: Sequence[torch.Tensor], *, session_id: bytes, sender: str, operation: int) -> Iterator[Frame]:
    """Cut one message into frames. The payload is copied once, when a frame is serialised."""
    headers = [pb.TensorHeader(dtype=DTYPES[t.dtype], shape=list(t.shape)) for t in tensors]
    views = [memoryview(t.contiguous().view(-1).numpy()).cast("B") for t in tensors]  # type: ignore[arg-type]
    total, offset = sum(len(view) for view in views), 0
    while offset < total or offset == 0:
        n_bytes = min(FRAME_BYTES, total - offset)
        header = pb.Frame(
            session_id=session_id,
            sender=sender,
            operation=operation,
            tensors=headers if offset == 0 else [],
            offset=offset,
        )
        yield Frame(header, *_slices(views, offset, n_bytes))
        offset += n_bytes
        if total == 0:
            return


def from_frames(
    frames: Iterator[Frame], specs: Sequence[Spec], *, session_id: bytes, sender: str, operation: int
) -> tuple[list[torch.Tensor], int]:
    """Collect one message that matches `specs`; return its tensors and the size of its serialised frames in bytes.

    Raises:
        ProtocolError: a frame differs in session, sender, operation, shape, dtype, offset or length.
        StreamEndedError: the stream ended within the message.
    """
    tensors = [torch.empty(spec.shape, dtype=spec.dtype) for spec in specs]
    views = [memoryview(t.view(-1).numpy()).cast("B") for t in tensors]  # type: ignore[arg-type]
    total, offset, n_wire = sum(len(view) for view in views), 0, 0
    while offset < total or offset == 0:
        frame = next(frames, None)
        if frame is None:
            raise StreamEndedError(f"{sender}'s stream ended in operation {operation} at byte {offset} of {total}")
        payload = memoryview(frame.payload)
        expected = {"session_id": session_id, "sender": sender, "operation": operation, "offset": offset}
        _check(frame.header, len(payload), specs, expected, total)
        _fill(views, offset, payload)
        offset += len(payload)
        n_wire += frame.ByteSize()
        if total == 0:
            break
    return tensors, n_wire


def _check(frame: pb.Frame, n_bytes: int, specs: Sequence[Spec], expected: dict[str, Any], total: int) -> None:
    """Refuse a frame, whose payload has `n_bytes`, that is not the next one of a message of `total` bytes."""
    sender, operation, offset = (expected[name] for name in ("sender", "operation", "offset"))
    for name, value in expected.items():
        if getattr(frame, name) != value:
            shown = "another" if name == "session_id" else _shown(getattr(frame, name))
            raise ProtocolError(f"frame from {sender}: {name} is {shown}, expected {value!r}")
    if not 0 <= n_bytes <= min(FRAME_BYTES, total - offset) or (total and not n_bytes):
        raise ProtocolError(f"frame from {sender}: {n_bytes} bytes at {offset} of {total}")
    if offset == 0:
        _check_headers(frame, specs, f"frame from {sender}: operation {operation}")
    elif frame.tensors:
        raise ProtocolError(f"frame from {sender}: a second header in operation {operation}")


def _check_headers(frame: pb.Frame, specs: Sequence[Spec], place: str) -> None:
    # Compare the counts first and report only what differs: one frame has room for a million headers or dimensions.
    if len(frame.tensors) != len(specs):
        raise ProtocolError(f"{place} holds {len(frame.tensors)} tensors, expected {len(specs)}")
    for index, (header, spec) in enumerate(zip(frame.tensors, specs, strict=True)):
        same = header.dtype == DTYPES[spec.dtype] and len(header.shape) == len(spec.shape)
        if not same or tuple(header.shape) != spec.shape:
            claimed = f"dtype {header.dtype}, {len(header.shape)} dimensions {header.shape[:MAX_SHOWN]}"
            wanted = f"dtype {DTYPES[spec.dtype]}, {len(spec.shape)} dimensions {list(spec.shape)}"
            raise ProtocolError(f"{place} holds as tensor {index} {claimed}, expected {wanted}")


def _shown(value: str | int) -> str:
    """Return a claim as an error quotes it, cut short: errors travel to other parties and must fit into a message."""
    return repr(value[:MAX_SHOWN] if isinstance(value, str) else value)


def _slices(views: list[memoryview], offset: int, length: int) -> list[memoryview]:
    parts = []
    for view in views:
        if length and offset < len(view):
            part = view[offset : offset + length]
            parts.append(part)
            length -= len(part)
        offset = max(0, offset - len(view))
    return parts


def _fill(views: list[memoryview], offset: int, payload: memoryview) -> None:
    position = 0
    for view in views:
        if offset < len(view) and position < len(payload):
            part = payload[position : position + len(view) - offset]
            view[offset : offset + len(part)] = part
            position += len(part)
            offset = len(view)
        offset -= len(view)
