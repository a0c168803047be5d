"""Strategies of hypothesis for fuzzing: mutations of files by their structure, and messages that nobody sends."""

import copy
import json
import struct
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
ODD: list[Any] = [0, -1, 1, 2, 3, 1 << 31, 10**9, 10**18, 10**30, 1.5, 1e300, True, None]
ODD += ["", "x" * 5000, "4", "\x00\x1b", "../../etc/passwd", "\ud800", [], {}, [1], {"a": 1}, DEEP]
INTEGERS = [0, 1, 2, 7, 16, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
TEXTS = ["", "dealer", "model-owner", "data-owner", "coordinator", "x" * 5000, "\x1b[2J\nERROR", "\u00e9\u202e"]
TEXTS += ["127.0.0.1:1", "a:99999", "unix:/nowhere", "lift", "crypten", "sst2", "private_table", "public_table"]
TEXTS += ["square_pair", "lifted"]
BYTES = [b"", bytes(16), bytes(range(16)), bytes(15), bytes(17), b"\xff" * 4096]
Path = list[Any]


def paths(value: Any, at: Path | None = None) -> list[Path]:
    """Return the ways to every value inside a JSON value, and to itself."""
    at = at or []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, inner in list(inside)[:200] for found in paths(inner, [*at, key]))]


def replaced(value: Any, path: Path, change: str, odd: Any) -> Any:
    """Return a copy of a JSON value, changed at one place."""
    if not path:
        return odd
    whole = copy.deepcopy(value)
    place = whole
    for key in path[:-1]:
        place = place[key]
    if change == "remove":
        del place[path[-1]]
    elif change == "double" and isinstance(place, list):
        place.append(place[path[-1]])
    elif change == "double":
        place[f"{path[-1]}x"] = place[path[-1]]
    else:
        place[path[-1]] = odd
    return whole


@st.composite
def mutated_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the content of a file with some of its bytes changed, left out, repeated, or cut off."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]))
        if kind == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "repeat":
            out[at:at] = out[at : at + draw(st.integers(1, 99))]
        else:
            out[at : at + 8] = bytes(len(out[at : at + 8]))
    return bytes(out)


def written(value: Any) -> bytes:
    """Return a JSON value as the bytes of a file; what is not Unicode too."""
    return json.dumps(value).encode()


@st.composite
def mutated_json(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the content of a JSON file with some of its values changed, removed or doubled."""
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(paths(value)))
        change = draw(st.sampled_from(["set", "set", "remove", "double"]))
        value = replaced(value, path, change, draw(st.sampled_from(ODD)))
    return written(value)


@st.composite
def mutated_lines(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the content of a file of JSON lines, one of which is changed, lost or repeated."""
    lines = data.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(["change", "change", "lose", "repeat"]))
    if kind == "change":
        lines[at] = draw(mutated_json(lines[at])) + b"\n"
    elif kind == "lose":
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return b"".join(lines)


@st.composite
def mutated_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a file of safetensors whose header is changed, or claims another length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = draw(mutated_json(data[8 : 8 + length]))
    claimed = draw(st.sampled_from([len(header), len(header), len(header), 0, 1 << 40, (1 << 64) - 1]))
    return struct.pack("<Q", claimed) + header + data[8 + length :]


def any_of(kind: str, data: bytes) -> st.SearchStrategy[bytes]:
    """Return mutations of a file's content, by the structure that its kind has and by its bytes."""
    by_structure = {"json": mutated_json, "lines": mutated_lines, "tensors": mutated_tensors}.get(kind)
    return st.one_of(by_structure(data), mutated_bytes(data)) if by_structure else mutated_bytes(data)


def messages(descriptor: Descriptor) -> st.SearchStrategy[Any]:
    """Return messages of a type with any of its fields, each with an odd value or one that belongs elsewhere."""
    kind = message_factory.GetMessageClass(descriptor)

    def made(fields: dict[str, Any]) -> Any:
        message = kind()
        for name, value in fields.items():
            field = descriptor.fields_by_name[name]
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                for key, each in value:
                    getattr(message, name)[key] = each
            elif is_repeated(field):
                getattr(message, name).extend(value)
            elif field.message_type is not None:
                getattr(message, name).CopyFrom(value)
            else:
                setattr(message, name, value)
        return message

    return st.fixed_dictionaries({}, optional={f.name: values(f) for f in descriptor.fields}).map(made)


def is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from([0.0, 1e300])), max_size=2)
    one = value(field)
    return st.lists(one, max_size=3) if is_repeated(field) else one


def value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return st.deferred(lambda: messages(field.message_type))
    kinds = FieldDescriptor
    bits = 32 if field.cpp_type in (kinds.CPPTYPE_UINT32, kinds.CPPTYPE_INT32) else 64
    if field.cpp_type in (kinds.CPPTYPE_UINT32, kinds.CPPTYPE_UINT64):
        return st.sampled_from([number for number in INTEGERS if number < 1 << bits])
    if field.cpp_type in (kinds.CPPTYPE_INT32, kinds.CPPTYPE_INT64):
        return st.sampled_from([-1, *(number for number in INTEGERS if number < 1 << (bits - 1))])
    if field.cpp_type == kinds.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in (kinds.CPPTYPE_DOUBLE, kinds.CPPTYPE_FLOAT):
        return st.sampled_from([0.0, -1.0, 1e30, float("inf"), float("nan")])
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return st.sampled_from([0, 1, 2])
    return st.sampled_from(BYTES if field.type == kinds.TYPE_BYTES else TEXTS)
