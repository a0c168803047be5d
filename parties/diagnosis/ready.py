"""Asks a service of this machine whether it takes sessions, for whoever starts, watches and replaces services."""

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpcformer.errors import PartyError, UserInputError
from parties.diagnosis.own import here
from parties.diagnosis.probe import STEP_S, split
from parties.settings.config import CoordinatorConfig, DataOwnerConfig
from parties.settings.config_file import load_any
from parties.wire.frames import open_channel


def check_ready(path: Path) -> str:
    """Ask the gRPC health service of the dealer or model owner whose file this is, and return the service's id.

    The party's own certificate is shown, because a service answers nobody without one.

    Raises:
        UserInputError: the file is wrong, or names no fixed port to ask.
        PartyError: nobody answers there, or the service takes no sessions.
    """
    config = load_any(path)
    if isinstance(config, CoordinatorConfig | DataOwnerConfig):
        raise UserInputError(
            f"--ready: {path} is the file of a {config.id!r} that serves nobody", "give a dealer's or model owner's"
        )
    if split(config.listen)[1] == 0:
        raise UserInputError(f"--ready: listen = {config.listen!r} names no port", "give it a fixed port")
    address = here(config.listen)
    with open_channel(address, config.id, config.credentials) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=STEP_S)
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "failed"
            raise PartyError(config.id, f"it does not answer at {address}: {code}", "look in its log") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise PartyError(config.id, "it takes no sessions: it is shutting down", "start it again")
    return config.id
