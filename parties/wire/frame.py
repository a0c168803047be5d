"""The message `Frame` of parties.proto as it is written and read, without protobuf's copies of the payload.

Protobuf copies a payload when it is set, when its message is serialised, when that is parsed, and when the field is
read. Here protobuf writes and reads all fields but the payload, which is the last of what is written. The generated
stubs call this class by protobuf's names (protos/generate.py). What crosses the wire is an ordinary `Frame`.
"""

from google.protobuf.message import DecodeError

from parties.stubs import parties_pb2 as pb

Buffer = bytes | memoryview
# The wire types of protobuf: a varint, a field with its length in front, and two of a fixed number of bytes.
VARINT, WITH_LENGTH, FIXED = 0, 2, {1: 8, 5: 4}
PAYLOAD_TAG = pb.Frame.PAYLOAD_FIELD_NUMBER << 3 | WITH_LENGTH
# A tag or a length takes at most so many bytes: seven bits of it in each.
MAX_VARINT = 10


class Frame:
    """A frame: a protobuf message without its payload, and the payload as bytes or views of bytes.

    Args:
        header: all fields but the payload.
        parts: the payload, in pieces. They are read when the frame is serialised, and must not change before.
    """

    __slots__ = ("_parts", "header")

    def __init__(self, header: pb.Frame, *parts: Buffer) -> None:
        self.header, self._parts = header, parts

    @property
    def payload(self) -> Buffer:
        """The payload, in one piece."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @payload.setter
    def payload(self, payload: Buffer) -> None:
        self._parts = (payload,)

    @property
    def n_bytes(self) -> int:
        """The length of the payload."""
        return sum(map(len, self._parts))

    def ByteSize(self) -> int:  # noqa: N802 (protobuf's name)
        """Return the length of the serialised frame."""
        n_bytes, size = self.n_bytes, self.header.ByteSize()
        return size + 1 + len(_varint(n_bytes)) + n_bytes if n_bytes else size

    def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
        """Return the frame as protobuf parses it."""
        header = self.header.SerializeToString()
        if not (n_bytes := self.n_bytes):
            return header
        return b"".join((header, bytes((PAYLOAD_TAG,)), _varint(n_bytes), *self._parts))

    @classmethod
    def FromString(cls, content: bytes) -> "Frame":  # noqa: N802 (protobuf's name)
        """Read a frame whatever the order of its fields. The payload is a view of `content`.

        Raises:
            DecodeError: protobuf would not parse it.
        """
        view, at, others, payload = memoryview(content), 0, 0, memoryview(b"")
        header: list[memoryview] = []
        while at < len(content):
            start = at
            tag, at = _read_varint(content, at)
            kind = tag & 7
            if kind == VARINT:
                _, at = _read_varint(content, at)
            elif kind == WITH_LENGTH:
                length, at = _read_varint(content, at)
                at += length
                if tag == PAYLOAD_TAG and at <= len(content):
                    payload = view[at - length : at]
                    header.append(view[others:start])
                    others = at
            elif kind in FIXED:
                at += FIXED[kind]
            else:
                raise DecodeError("a frame holds a group")
        if at > len(content):
            raise DecodeError("a frame ends within a field")
        header.append(view[others:])
        return cls(pb.Frame.FromString(b"".join(header)), payload)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    number = shift = 0
    for byte in content[at : at + MAX_VARINT]:
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise DecodeError("a frame ends within a number, or holds one that is too long")
