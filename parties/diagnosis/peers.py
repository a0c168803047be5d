"""Checks the way to each peer that a party calls, and what the peer answers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpcformer import __version__
from mpcformer.doctor import Finding
from mpcformer.errors import MPCFormerError, escaped
from parties.diagnosis import holdings
from parties.diagnosis.findings import peer_wrong, warning
from parties.diagnosis.probe import STEP_S, UnreachedError, probe
from parties.settings.config import PROTOCOL_VERSION, AnyConfig, CoordinatorConfig, DataOwnerConfig, PeerAddress
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.frames import open_channel
from parties.wire.tls import CLOCK_SKEW

NOTICED_S = 60.0
LISTS = {"coordinator": "coordinators", "data-owner": "data_owners", "model-owner": "model_owners"}
SAME_RELEASE = "install the same release on both machines"


@dataclass(frozen=True)
class Visit:
    """A peer that is checked on behalf of a party.

    Args:
        config, role: the configuration and the role of the party that calls.
        peer: the peer that it calls.
        peer_role: the role that the peer should have.
    """

    config: AnyConfig
    role: str
    peer: PeerAddress
    peer_role: str

    def row(self, what: str) -> str:
        """Return the name of a row of the table."""
        return f"{self.peer.id}: {what}"


def all_of(config: AnyConfig, role: str) -> list[Finding]:
    """Check every peer that this party calls. A data owner learns from its coordinator where the others are.

    The services of its own sessions stand in its file.
    """
    if isinstance(config, CoordinatorConfig):
        first = look(Visit(config, role, config.dealer, "dealer"))[0]
        return [*first, *look(Visit(config, role, config.model_owner, "model-owner"))[0]]
    if not isinstance(config, DataOwnerConfig):
        return []
    own = ((config.dealer, "dealer"), (config.model_owner, "model-owner"))
    rows = [row for peer, kind in own if peer is not None for row in look(Visit(config, role, peer, kind))[0]]
    if config.coordinator is None:
        return rows
    found_rows, reply = look(Visit(config, role, config.coordinator, "coordinator"))
    rows += found_rows
    for told in reply.peers if reply is not None else ():
        trusted = {"dealer": config.dealers, "model-owner": config.model_owners}.get(told.role, [])
        try:
            visit = Visit(config, role, PeerAddress(id=told.id, address=told.address), told.role)
        except ValueError:
            found = f"the coordinator names {told.address!r} as {told.role}'s address"
            rows.append(peer_wrong(f"{told.id}: address", found, "correct its file: HOST:PORT"))
            continue
        if told.id not in trusted:
            found = f"the coordinator's job names it as {told.role}; this file does not"
            rows.append(
                peer_wrong(visit.row("trusted"), found, f"add it to {told.role.replace('-', '_')}s if it is trusted")
            )
            continue
        rows += look(visit)[0]
    return rows


def look(visit: Visit) -> tuple[list[Finding], pb.DiagnoseReply | None]:
    """Return the rows about a peer, up to the first that makes further checks pointless, and the peer's answer."""
    peer, credentials = visit.peer, visit.config.credentials
    try:
        shown = probe(peer, credentials)
    except UnreachedError as error:
        return [peer_wrong(visit.row(error.step), error.found, error.remedy)], None
    until = f"{shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC" if shown else ""
    rows = [Finding(visit.row("address"), f"{peer.address} is open")]
    if shown:
        rows.append(Finding(visit.row("certificate"), f"valid until {until}; the peer accepts ours"))
    with open_channel(peer.address, peer.id, credentials) as channel:
        stub = rpc.CoordinatorStub(channel) if visit.peer_role == "coordinator" else rpc.PartyStub(channel)
        began = time.time()
        try:
            reply: pb.DiagnoseReply = stub.Diagnose(iter([pb.DiagnoseRequest()]), timeout=STEP_S)
        except grpc.RpcError as error:
            return [*rows, _no_answer(visit, error)], None
        middle = (began + time.time()) / 2
        rows += [_protocol(visit, reply), _clock(visit, reply.unix_time - middle), _served(visit, reply)]
        if visit.peer_role != "coordinator":
            rows.append(_health(visit, channel, reply))
    if visit.peer_role == "model-owner" and visit.role in reply.serves_as:
        rows += _students(visit, reply.models)
    return rows, reply


def _no_answer(visit: Visit, error: grpc.RpcError) -> Finding:
    code, detail = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
    if code == grpc.StatusCode.UNIMPLEMENTED:
        found = f"no {visit.peer_role} answers there: it has another role or an older release"
        return peer_wrong(visit.row("protocol"), found, f"correct the address, or {SAME_RELEASE}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return peer_wrong(visit.row("protocol"), f"no answer for {STEP_S:.0f} s", "its process hangs: look at it there")
    return peer_wrong(visit.row("protocol"), f"{code.name if code else 'failed'}: {detail}", "its log may say more")


def _protocol(visit: Visit, reply: pb.DiagnoseReply) -> Finding:
    check = visit.row("protocol")
    if reply.role != visit.peer_role:
        return peer_wrong(check, f"it is a {reply.role}, expected a {visit.peer_role}", "correct the address or the id")
    if reply.protocol_version != PROTOCOL_VERSION:
        found = f"version {reply.protocol_version} (release {reply.release}), here {PROTOCOL_VERSION} ({__version__})"
        return peer_wrong(check, found, SAME_RELEASE)
    if reply.release != __version__:
        return peer_wrong(check, f"release {reply.release}, here {__version__}", SAME_RELEASE)
    return Finding(check, f"version {PROTOCOL_VERSION}, release {__version__}")


def _clock(visit: Visit, ahead_s: float) -> Finding:
    check, limit_s = visit.row("clock"), CLOCK_SKEW.total_seconds()
    if abs(ahead_s) < NOTICED_S:
        return Finding(check, f"{ahead_s:+.1f} s from this machine's")
    found = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    remedy = "set both clocks (timedatectl set-ntp true)"
    if abs(ahead_s) > limit_s:
        return peer_wrong(check, f"{found}: certificates may seem expired or not yet valid", remedy)
    return warning(check, found, remedy)


def _served(visit: Visit, reply: pb.DiagnoseReply) -> Finding:
    check, me = visit.row("serves us"), visit.config.id
    if visit.role in reply.serves_as:
        return Finding(check, f"as {visit.role}")
    found = f"it does not know {me!r} as a {visit.role}"
    if visit.peer_role == "coordinator":
        return peer_wrong(check, found, f'data_owner = "{me}" in its file')
    return peer_wrong(check, found, f"add {me!r} to {LISTS[visit.role]} in its file and start it again")


def _health(visit: Visit, channel: grpc.Channel, reply: pb.DiagnoseReply) -> Finding:
    check = visit.row("health")
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=STEP_S)
    except grpc.RpcError as error:
        code = error.code().name if isinstance(error, grpc.Call) else "failed"
        return peer_wrong(check, f"the peer does not answer this: {code}", "its log may say more")
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return peer_wrong(check, f"{name}: it is shutting down", "start it again")
    if visit.role not in reply.serves_as:
        return Finding(check, name)
    if not reply.free_sessions:
        return warning(check, f"{name}, but no session is free", "wait until one has ended, or raise its max_sessions")
    return Finding(check, f"{name}; free sessions: {reply.free_sessions}")


def _students(visit: Visit, claims: Sequence[pb.ModelClaim]) -> list[Finding]:
    """State which students this party may ask; for a data owner, check that its public files belong to them."""
    config = visit.config
    if not isinstance(config, DataOwnerConfig) or not (config.models or config.public_model):
        return [Finding(_row(visit, each.name, claims), _shown(each)) for each in claims]
    if config.models:
        wanted: list[str | None] = [entry.name for entry in config.models]
    else:
        wanted = [config.model]
    return [_compared(visit, config, name, claims) for name in wanted]


def _row(visit: Visit, name: str, claims: Sequence[pb.ModelClaim]) -> str:
    return visit.row("student" if len(claims) == 1 else f"student {escaped(name)}")


def _shown(claim: pb.ModelClaim) -> str:
    return f"sha256 {claim.student}; public facts {claim.facts.hex()[:16]}"


def _compared(visit: Visit, config: DataOwnerConfig, name: str | None, claims: Sequence[pb.ModelClaim]) -> Finding:
    """Compare the public files of a data owner's model, or of its only one, with what it may ask."""
    check = visit.row("student" if name is None else f"student {name}")
    offered = {each.name: each for each in claims}
    if name is None and len(claims) > 1:
        return peer_wrong(
            check,
            f"it lets us ask several: {escaped(', '.join(offered))}",
            "name one: model, or [[models]], in the file",
        )
    claimed = claims[0] if name is None and claims else offered.get(name or "")
    if claimed is None:
        found = "it lets us ask none" if name is None else "it lets us ask no student of this name"
        return peer_wrong(check, found, "mpcformer ask --list-models --config FILE; may_ask in its file decides")
    remedy = f"get the public files of {visit.peer.id}'s student (mpcformer export)"
    try:
        expected = holdings.claim(config.picked(name))
    except MPCFormerError:  # Another row reports this.
        return warning(check, f"sha256 {claimed.student}; not compared", remedy)
    if expected.student != claimed.student:
        found = f"it serves {claimed.student[:16]}..., public_model belongs to {expected.student[:16]}..."
        return peer_wrong(check, found, remedy)
    if expected.facts != claimed.facts:
        return peer_wrong(check, "the same, but architecture, forms or ranges in public_model differ", remedy)
    return Finding(check, f"sha256 {claimed.student}, as in public_model")
