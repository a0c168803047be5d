"""The stream between the owners, passed on between the model owner's server and the process of a program.

Each frame travels as its length and its bytes. The server looks at no frame: the process checks them, as any owner.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

from parties.wire.frame import Frame
from parties.wire.peer_channel import PeerChannel

LENGTH = struct.Struct("<I")
# gRPC accepts no larger message.
MAX_BYTES = 4 << 20


class FrameLink:
    """The server's end: it takes over the data owner's stream, as a `PeerChannel` does.

    Attributes:
        theirs: the end for the process, until it is handed over.
    """

    def __init__(self) -> None:
        self._own, self.theirs = socket.socketpair()
        self._cancel: Callable[[], object] = lambda: None

    def attach(self, incoming: Iterator[Frame], cancel: Callable[[], object]) -> None:
        """Join the data owner's stream; `cancel` ends it at once."""
        self._cancel = cancel
        threading.Thread(target=self._pass_on, args=(incoming,), name="frames", daemon=True).start()

    def outgoing(self) -> Iterator[Frame]:
        """Yield the frames of the process, until it sends no more."""
        yield from _frames(self._own)

    def _pass_on(self, incoming: Iterator[Frame]) -> None:
        # A stream that breaks ends as one that is closed: the process sees that nothing comes any more.
        with suppress(Exception):
            _write(self._own, incoming)
        with suppress(OSError):
            self._own.shutdown(socket.SHUT_WR)

    def handed_over(self) -> None:
        """Close the end that the process has now: it ends with the process."""
        self.theirs.close()

    def close(self) -> None:
        """Pass nothing on any more; nothing happens the second time."""
        with suppress(OSError):
            self._own.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """End the data owner's stream at once."""
        self.close()
        self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._own.close()
        self.theirs.close()


def join(descriptor: int, channel: PeerChannel) -> None:
    """Let a channel in the process of a program go on the stream that its server passes on."""
    end = socket.socket(fileno=descriptor)

    def write() -> None:
        with suppress(OSError):
            _write(end, channel.outgoing())
        with suppress(OSError):
            end.shutdown(socket.SHUT_WR)

    def cancel() -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    channel.attach(_frames(end), cancel)
    threading.Thread(target=write, name="frames", daemon=True).start()


def _write(end: socket.socket, frames: Iterator[Frame]) -> None:
    for frame in frames:
        content = frame.SerializeToString()
        end.sendall(LENGTH.pack(len(content)) + content)


def _frames(end: socket.socket) -> Iterator[Frame]:
    """Yield the frames that arrive, until the other end sends no more."""
    while (head := _exactly(end, LENGTH.size)) is not None:
        (n_bytes,) = LENGTH.unpack(head)
        content = _exactly(end, n_bytes) if n_bytes <= MAX_BYTES else None
        if content is None:
            return
        yield Frame.FromString(content)


def _exactly(end: socket.socket, n_bytes: int) -> bytes | None:
    found = bytearray(n_bytes)
    view, at = memoryview(found), 0
    while at < n_bytes:
        try:
            n_read = end.recv_into(view[at:])
        except OSError:
            return None
        if n_read == 0:
            return None
        at += n_read
    return bytes(found)
