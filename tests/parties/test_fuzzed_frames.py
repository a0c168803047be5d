"""Ten thousand frames that no honest party sends are refused by a ProtocolError, or read as exactly what they hold."""

import random
import tracemalloc
from collections.abc import Callable, Sequence

import grpc
import pytest
import torch
from google.protobuf.message import DecodeError

from mpcformer.channel import Spec
from mpcformer.errors import PartyError, ProtocolError
from parties.settings.config import TlsFiles
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import frames, tls
from parties.wire.frame import Frame
from parties.wire.frames import from_frames, open_channel, start_server, to_frames
from parties.wire.peer_channel import PeerChannel
from tests.parties.sessions import PeerService

N_BYTE_LEVEL, N_FIELD_LEVEL = 6_000, 4_000
LABELS = {"session_id": b"s" * 16, "sender": "model-owner", "operation": 3}
PIECE = 64
MESSAGES = [
    [torch.arange(35).mul(0x9E3779B97F4A7C15).view(5, 7), torch.arange(9, dtype=torch.uint8)],
    [torch.zeros(0, dtype=torch.uint8)],
    [torch.tensor(7)],
    [torch.arange(200, dtype=torch.uint8).view(2, 100), torch.zeros(0, 3, dtype=torch.int64), torch.arange(4)],
]
NUMBERS = (0, 1, 2, 3, 7, 9, 35, 64, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
Frames = list[Frame]


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make frames small, so messages have several frames, and fail if any tensor is made but the expected ones."""
    monkeypatch.setattr(frames, "FRAME_BYTES", PIECE)
    shapes = {tuple(tensor.shape) for message in MESSAGES for tensor in message}
    empty = torch.empty

    def guarded(shape: Sequence[int], **kwargs: object) -> torch.Tensor:
        assert tuple(shape) in shapes, f"memory taken for {shape}"
        return empty(shape, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", guarded)


def judge(frames: Frames, message: list[torch.Tensor]) -> bool:
    """Read frames that claim to be `message`; return whether they were accepted."""
    specs = [Spec.of(tensor) for tensor in message]
    try:
        tensors, _ = from_frames(iter(frames), specs, **LABELS)
    except ProtocolError:
        return False
    assert [Spec.of(tensor) for tensor in tensors] == specs
    held = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    read = b""
    for frame in frames:
        if read and len(read) == len(held):
            break
        labels = {name: getattr(frame.header, name) for name in LABELS}
        assert labels == LABELS
        assert frame.header.offset == len(read)
        read += frame.payload
    assert read == held
    return True


def garble(data: bytes, generator: random.Random) -> bytes:
    """Return serialised bytes with one or two mutations."""
    for _ in range(generator.randint(1, 2)):
        at, end = sorted(generator.randint(0, len(data)) for _ in range(2))
        end = min(end, at + 20)
        how = generator.randrange(6)
        if how == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + generator.randbytes(end - at) + data[end:]
        elif how == 2:
            data = data[:at] + data[end:]
        elif how == 3:
            data = data[:end] + data[at:end] + data[end:]
        elif how == 4:
            data = data[:at] + generator.randbytes(generator.randint(1, 12)) + data[at:]
        else:
            data = data[:at]
    return data


def change_field(frames: Frames, generator: random.Random) -> None:
    """Change one field of one frame, or the order of frames, but no byte of a payload."""
    frame = generator.choice(frames)
    fields = frame.header
    header = generator.choice(fields.tensors) if fields.tensors else fields.tensors.add()
    number = generator.choice(NUMBERS)
    changes: list[Callable[[], object]] = [
        lambda: setattr(fields, "session_id", generator.randbytes(generator.choice((0, 15, 16, 17)))),
        lambda: setattr(fields, "sender", generator.choice(("", "dealer", "data-owner", "model-owner\0", "m" * 5000))),
        lambda: setattr(fields, "operation", number),
        lambda: setattr(fields, "offset", number),
        lambda: setattr(fields, "round", number),
        lambda: setattr(header, "dtype", generator.choice((0, 1, 2, 3, 1 << 30, -1))),
        lambda: header.shape.append(number),
        lambda: header.shape.__delitem__(slice(generator.randrange(2), None)),
        lambda: header.shape.__setitem__(slice(None), [number] * generator.randrange(6)),
        lambda: fields.tensors.add(dtype=1, shape=[number]),
        lambda: fields.tensors.extend(list(fields.tensors)),
        lambda: fields.ClearField("tensors"),
        lambda: setattr(frame, "payload", frame.payload[: number % (len(frame.payload) + 1)]),
        lambda: setattr(frame, "payload", bytes(frame.payload) * 2 + b"x"),
        lambda: frames.insert(generator.randrange(len(frames) + 1), frame),
        lambda: frames.remove(frame),
        lambda: generator.shuffle(frames),
    ]
    generator.choice(changes)()


def test_bytes_are_read_as_protobuf_reads_them() -> None:
    """Whatever they are, except for groups, which no message of this project has."""
    generator = random.Random(1)
    honest = [frame for message in MESSAGES for frame in to_frames(message, **LABELS)]
    honest.append(Frame(pb.Frame(round=9), bytes(300), b"abc"))
    n_read = n_refused = 0
    for _ in range(20_000):
        data = generator.choice(honest).SerializeToString()
        if generator.random() < 0.2:  # in another order, and some fields twice
            data = generator.choice(honest).SerializeToString() + data
        data = garble(data, generator)
        try:
            read = Frame.FromString(data)
        except DecodeError as error:
            n_refused += 1
            if "group" not in str(error):
                with pytest.raises(DecodeError):
                    pb.Frame.FromString(data)
            continue
        n_read += 1
        expected = pb.Frame.FromString(data)
        assert bytes(read.payload) == expected.payload
        expected.ClearField("payload")
        assert read.header == expected
    assert min(n_read, n_refused) > 2_000


@pytest.mark.usefixtures("small_frames")
def test_frames_garbled_byte_by_byte() -> None:
    generator = random.Random(0)
    honest = [list(to_frames(message, **LABELS)) for message in MESSAGES]
    n_parsed = n_accepted = 0
    tracemalloc.start()
    while n_parsed < N_BYTE_LEVEL:
        which = generator.randrange(len(honest))
        frames, place = list(honest[which]), generator.randrange(len(honest[which]))
        try:
            frames[place] = Frame.FromString(garble(frames[place].SerializeToString(), generator))
        except DecodeError:
            continue  # gRPC ends the stream, as a test below shows.
        n_parsed += 1
        n_accepted += judge(frames, MESSAGES[which])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert 0 < n_accepted < n_parsed / 2


@pytest.mark.usefixtures("small_frames")
def test_frames_changed_field_by_field() -> None:
    """The payloads are honest, so whatever is accepted must be the honest message."""
    generator = random.Random(1)
    n_accepted = 0
    tracemalloc.start()
    for index in range(N_FIELD_LEVEL):
        message = MESSAGES[index % len(MESSAGES)]
        frames = list(to_frames(message, **LABELS))
        for _ in range(generator.randint(1, 3)):
            if frames:
                change_field(frames, generator)
        if judge(frames, message):
            n_accepted += 1
            received, _ = from_frames(iter(frames), [Spec.of(t) for t in message], **LABELS)
            assert all(torch.equal(a, b) for a, b in zip(received, message, strict=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert 0 < n_accepted < N_FIELD_LEVEL / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.tensors[0].shape.extend([1] * 2_000_000),
        lambda header: header.tensors.extend([pb.TensorHeader()] * 1_000_000),
        lambda header: setattr(header, "sender", "m" * 3_000_000),
        lambda header: setattr(header, "session_id", b"s" * 3_000_000),
    ],
    ids=["dimensions", "tensors", "sender", "session"],
)
def test_a_frame_full_of_claims_costs_no_more_than_itself(change: Callable[[pb.Frame], object]) -> None:
    message = MESSAGES[0]
    (frame,) = to_frames(message, **LABELS)
    change(frame.header)
    tracemalloc.start()
    with pytest.raises(ProtocolError) as caught:
        from_frames(iter([frame]), [Spec.of(tensor) for tensor in message], **LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    # The error is reported to the coordinator, in a message whose size is limited too.
    assert len(str(caught.value)) < 1000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return tls.make_certificates(tmp_path_factory.mktemp("tls"), ["model-owner", "data-owner"])


GARBAGE = {
    "no frame": b"\xff" * 9,
    "half a frame": b"\x32\x40abc",
    "too large": b"\x32\xc0\x96\xb1\x02" + bytes(5_000_000),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("liar", ["model-owner", "data-owner"])
def test_what_is_no_frame_ends_the_stream_typed(name: str, liar: str, files: dict[str, TlsFiles]) -> None:
    """Either owner may send something that is no frame."""
    honest = {"model-owner": "data-owner", "data-owner": "model-owner"}[liar]
    channel = PeerChannel(party_id=honest, peer_id=liar, session_id=b"s" * 16)
    big = [("grpc.max_send_message_length", 1 << 24)]

    def add(server: grpc.Server) -> None:
        if liar == "data-owner":
            rpc.add_PeerServicer_to_server(PeerService(channel), server)
            return
        handler = grpc.stream_stream_rpc_method_handler(lambda frames, context: iter([GARBAGE[name]]))
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("mpcformer.v1.Peer", {"Exchange": handler}),)
        )

    pair = pytest.MonkeyPatch()
    pair.setattr(frames, "COMMON_OPTIONS", [o for o in frames.COMMON_OPTIONS if "max_send" not in o[0]] + big)
    server, address = start_server(add, "127.0.0.1:0", files["model-owner"])
    link = open_channel(address, "model-owner", files["data-owner"])
    pair.undo()
    if liar == "data-owner":
        _call = link.stream_stream("/mpcformer.v1.Peer/Exchange")(iter([GARBAGE[name]]))
    else:
        stream = rpc.PeerStub(link).Exchange(channel.outgoing(), timeout=10)
        channel.attach(stream, stream.cancel)
    with pytest.raises(PartyError, match=f"{liar}: it"):
        channel.receive([Spec(torch.int64, (3,))])
    link.close()
    channel.close()
    # The test does not wait: a gRPC server may never stop after a request that did not parse.
    server.stop(0)
