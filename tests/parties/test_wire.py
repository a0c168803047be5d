"""Frames carry messages unchanged; the receiver refuses whatever differs from its expectation and names it."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcformer.channel import Spec
from mpcformer.errors import ProtocolError
from parties.stubs import parties_pb2 as pb
from parties.wire.frame import Frame
from parties.wire.frames import FRAME_BYTES, from_frames, to_frames

LABELS = {"session_id": b"s" * 16, "sender": "model-owner", "operation": 3}
shapes = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4)


def pattern(shape: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    n = int(torch.tensor(shape).prod()) if shape else 1
    return torch.arange(n).mul(2654435761).to(dtype).view(shape)


@settings(max_examples=60)
@given(shapes, st.booleans())
def test_messages_survive(sizes: list[list[int]], as_bytes: bool) -> None:
    tensors = [pattern(size, torch.uint8 if as_bytes else torch.int64) for size in sizes]
    received, n_bytes = from_frames(to_frames(tensors, **LABELS), [Spec.of(t) for t in tensors], **LABELS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, received, strict=True))
    assert n_bytes >= sum(t.numel() * t.element_size() for t in tensors)


def test_large_messages_travel_in_pieces_across_tensor_borders() -> None:
    tensors = [pattern([FRAME_BYTES // 8 - 3]), pattern([2, FRAME_BYTES // 8]), pattern([5])]
    frames = list(to_frames(tensors, **LABELS))
    assert len(frames) == 4
    assert max(len(frame.payload) for frame in frames) == FRAME_BYTES
    received, n_bytes = from_frames(iter(frames), [Spec.of(t) for t in tensors], **LABELS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, received, strict=True))
    assert n_bytes == sum(len(frame.SerializeToString()) for frame in frames), "counted as serialised"


@given(st.integers(0, 1 << 21), st.integers(0, 3), st.integers(0, (1 << 64) - 1))
def test_protobuf_reads_a_frame(n_bytes: int, n_parts: int, operation: int) -> None:
    content = bytes(range(251)) * (n_bytes // 251) + bytes(n_bytes % 251)
    edges = [n_bytes * i // max(1, n_parts) for i in range(n_parts + 1)]
    parts = [memoryview(content)[a:b] for a, b in itertools.pairwise(edges)]
    frame = Frame(pb.Frame(session_id=b"s" * 16, operation=operation, offset=5), *parts)
    sent = frame.SerializeToString()
    assert len(sent) == frame.ByteSize()
    read = pb.Frame.FromString(sent)
    assert read == pb.Frame(session_id=b"s" * 16, operation=operation, offset=5, payload=b"".join(parts))
    assert Frame.FromString(sent).payload == read.payload


def test_a_view_is_sent_by_its_values() -> None:
    tensor = pattern([4, 6]).t()
    received, _ = from_frames(to_frames([tensor], **LABELS), [Spec.of(tensor)], **LABELS)
    assert torch.equal(received[0], tensor)


def frames_of(n_elements: int = FRAME_BYTES // 4) -> list[Frame]:
    return list(to_frames([pattern([n_elements])], **LABELS))


BROKEN: dict[str, tuple[Callable[[list[Frame]], None], str]] = {
    "another session": (lambda f: setattr(f[0].header, "session_id", b"t" * 16), "session_id is another"),
    "another sender": (lambda f: setattr(f[0].header, "sender", "dealer"), "sender is 'dealer'"),
    "another operation": (lambda f: setattr(f[1].header, "operation", 4), "operation is 4"),
    "a gap": (lambda f: setattr(f[1].header, "offset", 8), "offset is 8"),
    "a duplicate": (lambda f: f.insert(1, f[0]), "offset is 0"),
    "reordered": (lambda f: f.reverse(), "offset is"),
    "too short": (lambda f: setattr(f[0], "payload", b""), "0 bytes at 0"),
    "too long": (lambda f: setattr(f[1], "payload", bytes(f[1].payload) + b"x"), "bytes at"),
    "another shape": (lambda f: f[0].header.tensors[0].shape.append(1), "holds"),
    "another dtype": (lambda f: setattr(f[0].header.tensors[0], "dtype", pb.DTYPE_UINT8), "holds"),
    "one tensor more": (lambda f: f[0].header.tensors.add().shape.append(9), "holds"),
    "a second header": (lambda f: f[1].header.tensors.add().shape.append(9), "second header"),
    "truncated": (lambda f: f.pop(), "stream ended in operation 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames(name: str) -> None:
    frames = frames_of()
    change, message = BROKEN[name]
    change(frames)
    with pytest.raises(ProtocolError, match=message):
        from_frames(iter(frames), [Spec(torch.int64, (FRAME_BYTES // 4,))], **LABELS)


def test_memory_is_taken_for_the_expectation_not_for_the_claim() -> None:
    frame = frames_of(4)[0]
    frame.header.tensors[0].shape[:] = [1 << 60]
    with pytest.raises(ProtocolError, match="holds"):
        from_frames(iter([frame]), [Spec(torch.int64, (4,))], **LABELS)


def test_the_error_does_not_quote_the_session() -> None:
    frames = frames_of()
    frames[0].header.session_id = b"secretsecretsecr"
    with pytest.raises(ProtocolError) as caught:
        from_frames(iter(frames), [Spec(torch.int64, (FRAME_BYTES // 4,))], **LABELS)
    assert "secretsecret" not in str(caught.value)
