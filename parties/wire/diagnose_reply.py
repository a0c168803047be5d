"""The answer of a server to `mpcformer doctor --config`, which a party runs before it calls that server."""

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
    """Return who this server is and the roles in which it serves the caller.

    Args:
        context: the call.
        party_id, role: the id and the role of this server.
        listed: role -> the ids that the server's configuration lists in that role.
    """
    callers = set(caller_names(context))
    if len(callers) != 1:
        what = f"the caller's certificate names {len(callers)} parties, expected one"
        refuse(context, grpc.StatusCode.PERMISSION_DENIED, what)
    return pb.DiagnoseReply(
        protocol_version=PROTOCOL_VERSION,
        release=__version__,
        role=role,
        id=party_id,
        unix_time=now(),
        serves_as=[name for name, ids in listed.items() if callers & set(ids)],
    )


def callers_of(config: ServiceConfig) -> dict[str, list[str]]:
    """Return role -> the ids that may call a service."""
    listed = {"coordinator": config.coordinators, "data-owner": config.data_owners}
    return listed | ({"model-owner": config.model_owners} if isinstance(config, DealerConfig) else {})


def now() -> float:
    """Return the Unix time of this machine's clock, in seconds."""
    return time.time()
