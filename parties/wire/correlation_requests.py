"""Requests for correlations as they travel from the model owner to the dealer."""

from mpcformer.correlations import Request
from parties.stubs import parties_pb2 as pb


def to_wire(request: Request) -> pb.CorrelationRequest:
    """Return a request as the message that travels."""
    shapes = [pb.CorrelationShape(sizes=shape) for shape in request.shapes]
    return pb.CorrelationRequest(
        kind=request.kind, shapes=shapes, op=request.op, bits=request.bits, params=request.params
    )


def from_wire(message: pb.CorrelationRequest) -> Request:
    """Return the request that a message states; the caller has to validate it."""
    shapes = tuple(tuple(shape.sizes) for shape in message.shapes)
    return Request(message.kind, shapes, op=message.op, bits=message.bits, params=tuple(message.params))
