"""The models that a data owner may ask of its model owner, and what is public of them."""

from pathlib import Path
from typing import Any

import grpc

from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from parties.settings.config import LONGEST_S, PROTOCOL_VERSION, DataOwnerConfig
from parties.settings.config_file import load_party
from parties.settings.public_files import recorded_student
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.frames import open_channel, wait_until_ready

REPLY_S = 10.0
# What the data owner's own files are to a model that is offered: of its weights, of others, or not there.
SAME, OTHERS, MISSING = "match", "of other weights", "none"


def load_asking(config: str | Path, patience_s: float | None = None) -> DataOwnerConfig:
    """Read the file of a data owner that orders its own sessions.

    Args:
        config: the file.
        patience_s: for how many seconds to wait for another party; None stands for `join_timeout_s` of the file.

    Raises:
        UserInputError: it is no such file, or the number is none.
    """
    path = Path(config)
    loaded = load_party(path)
    if not isinstance(loaded, DataOwnerConfig) or loaded.dealer is None:
        raise UserInputError(
            f"--config: {path} is not the file of a data owner that orders its own sessions",
            "give a data owner's file with dealer and model_owner",
        )
    if patience_s is None:
        return loaded
    if not 0 < patience_s <= LONGEST_S:
        raise UserInputError(f"patience_s: {patience_s} is outside 0..{LONGEST_S:.0f}", "give a number of seconds")
    return loaded.model_copy(update={"join_timeout_s": patience_s})


def models(config: str | Path, *, patience_s: float | None = None) -> list[dict[str, Any]]:
    """Ask the model owner of a deployment which of its models this data owner may ask.

    Args:
        config: the data owner's TOML file, with `dealer` and `model_owner`.
        patience_s: for how many seconds to wait for the model owner; the default is `join_timeout_s` of the file.

    Returns:
        For each model "name", "sha256" (of its weights), "about" (what is public of it, by name), "left_today" and
        "left_in_all" (how many texts the budget still allows; None: any number), and "public_files": whether this data
        owner's own files "match" the model, are "of other weights", or are not there ("none").

    Raises:
        UserInputError: the file is wrong.
        PartyError: the model owner does not answer, or does not serve this data owner.
    """
    loaded = load_asking(config, patience_s)
    return [
        {
            "name": claim.name,
            "sha256": claim.student,
            "about": dict(claim.about),
            "left_today": claim.left_today if claim.HasField("left_today") else None,
            "left_in_all": claim.left_in_all if claim.HasField("left_in_all") else None,
            "public_files": own_files(loaded, claim),
        }
        for claim in _offered(loaded)
    ]


def _offered(config: DataOwnerConfig) -> list[pb.ModelClaim]:
    peer = config.model_owner
    assert peer is not None
    with open_channel(peer.address, peer.id, config.credentials) as channel:
        wait_until_ready(channel, peer.id, peer.address, config.join_timeout_s)
        try:
            reply: pb.DiagnoseReply = rpc.PartyStub(channel).Diagnose(iter([pb.DiagnoseRequest()]), timeout=REPLY_S)
        except grpc.RpcError as error:
            raise causes.of_call(peer.id, error) from None
    if reply.role != "model-owner" or reply.protocol_version != PROTOCOL_VERSION:
        said = f"it speaks version {reply.protocol_version} as {reply.role[:20]}"
        raise PartyError(
            peer.id, f"{said}, expected {PROTOCOL_VERSION} as model-owner", "correct its address or release"
        )
    if config.role not in reply.serves_as:
        raise PartyError(
            peer.id, f"it does not know {config.id!r} as a data-owner", "ask its operator to add it to data_owners"
        )
    return list(reply.models)


def own_files(config: DataOwnerConfig, claim: pb.ModelClaim) -> str:
    """Return what this data owner's public files are to a model that is offered."""
    try:
        mine = recorded_student(config.picked(claim.name).folder_of_model())
    except MPCFormerError:
        return MISSING
    return SAME if mine == claim.student else OTHERS
