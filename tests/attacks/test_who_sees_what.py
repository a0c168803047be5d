"""The definition of the wire has no field in which a party could be sent data that it must not see."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from parties.session.orderer import digests_are_short
from parties.stubs import parties_pb2 as pb


def fields(message: Descriptor, seen: frozenset[str] = frozenset()) -> dict[str, FieldDescriptor]:
    """Return all fields of a message, and of the messages inside it, by their full names."""
    found: dict[str, FieldDescriptor] = {}
    for field in message.fields:
        found[field.full_name] = field
        if field.message_type is not None and field.message_type.full_name not in seen:
            found |= fields(field.message_type, seen | {message.full_name})
    return found


def byte_fields(message: Descriptor) -> set[str]:
    return {name for name, field in fields(message).items() if field.type == FieldDescriptor.TYPE_BYTES}


def test_the_coordinator_is_sent_no_share() -> None:
    """The only byte strings that reach it are digests, whose length is tested below; the only numbers are results."""
    event = pb.PartyEvent.DESCRIPTOR
    assert byte_fields(event) == {
        f"mpcformer.v1.{n}" for n in ("Report.transcript", "Report.batch_plan", "Batch.batch_plan", "Batch.terms")
    }
    numbers = {name for name, f in fields(event).items() if f.is_repeated and f.type != FieldDescriptor.TYPE_MESSAGE}
    assert numbers == {
        f"mpcformer.v1.Predictions.{name}" for name in ("rows", "ids", "labels", "groups", "logits", "refused")
    }


def test_the_dealer_is_sent_shapes_and_public_ranges_only() -> None:
    ids = {"DealRequest.session_id", "DealRequest.drawn_id", "OpenSessionRequest.session_id"}
    session = {f"mpcformer.v1.{name}" for name in ids}
    assert byte_fields(pb.DealRequest.DESCRIPTOR) | byte_fields(pb.OpenSessionRequest.DESCRIPTOR) == session
    assert set(fields(pb.CorrelationRequest.DESCRIPTOR)) == {
        "mpcformer.v1.CorrelationRequest.kind",
        "mpcformer.v1.CorrelationRequest.shapes",
        "mpcformer.v1.CorrelationRequest.op",
        "mpcformer.v1.CorrelationRequest.bits",
        "mpcformer.v1.CorrelationRequest.params",
        "mpcformer.v1.CorrelationShape.sizes",
    }


def test_the_coordinator_sends_the_owners_no_data() -> None:
    assert byte_fields(pb.Command.DESCRIPTOR) == {"mpcformer.v1.Job.session_id", "mpcformer.v1.Job.batch_plan"}


def test_a_digest_is_no_place_for_a_share() -> None:
    for digest, fine in ((b"", True), (bytes(32), True), (bytes(33), False), (bytes(8), False)):
        for event in (
            pb.PartyEvent(report=pb.Report(transcript=digest)),
            pb.PartyEvent(batch=pb.Batch(batch_plan=digest)),
        ):
            assert digests_are_short(event) == fine
