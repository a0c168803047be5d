"""A server's answer to `mpcformer doctor --config` of a party that is about to call it."""

import time
from collections.abc import Mapping, Sequence

import grpc

from mpcformer import __version__
from parties.settings.config import PROTOCOL_VERSION, DealerConfig, ServiceConfig
from parties.stubs import parties_pb2 as pb
from parties.wire.callers import caller_names, refuse


def answer_diagnose(
    context: grpc.ServicerContext, party_id: str, role: str, listed: Mapping[str, Sequence[str]]
) -> pb.DiagnoseReply:
    """Who this server is, and as what it serves the caller.

    Args:
        party_id, role: the server's.
        listed: role -> ids that its configuration lists in it.
    """
    callers = set(caller_names(context))
    if not callers:
        refuse(context, grpc.StatusCode.PERMISSION_DENIED, "the caller's certificate names nobody")
    return pb.DiagnoseReply(
        protocol_version=PROTOCOL_VERSION,
        release=__version__,
        role=role,
        id=party_id,
        unix_time=now(),
        serves_as=[name for name, ids in listed.items() if callers & set(ids)],
    )


def callers_of(config: ServiceConfig) -> dict[str, list[str]]:
    """Role -> ids that may call a service."""
    listed = {"coordinator": config.coordinators, "data-owner": config.data_owners}
    return listed | ({"model-owner": config.model_owners} if isinstance(config, DealerConfig) else {})


def now() -> float:
    """Unix time, by this machine's clock."""
    return time.time()
