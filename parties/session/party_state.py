"""The state of one party of a job, as the coordinator knows it."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpcformer import __version__
from mpcformer.errors import PartyError
from parties.session.membership import HEARTBEAT_S
from parties.settings.config import PROTOCOL_VERSION, Role
from parties.stubs import parties_pb2 as pb


@dataclass
class PartyState:
    """The state of one party.

    Args:
        role: the party's role in the job.
        commands: the commands to send; None ends the stream.
        joined: whether the party is connected.
        ready: the party's answer to the job.
        last_seen: when its last event arrived, in seconds of `time.monotonic`.
        report: its last report.
        left: whether its stream has ended, or it has said that it leaves.
        may_leave: whether it was dismissed before the session's end.
        reported_failure: whether it has reported a failure, its own or that of another party.
    """

    role: Role
    commands: "queue.SimpleQueue[pb.Command | None]" = field(default_factory=queue.SimpleQueue)
    joined: bool = False
    ready: pb.Ready | None = None
    last_seen: float = 0.0
    report: pb.Report | None = None
    left: bool = False
    may_leave: bool = False
    reported_failure: bool = False

    def outgoing(self) -> Iterator[pb.Command]:
        """Yield the commands for the party, and a heartbeat whenever there is no command."""
        while True:
            try:
                command = self.commands.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                command = pb.Command(heartbeat=pb.Heartbeat())
            if command is None:
                return
            yield command


def greeting_error(party_id: str, role: Role, hello: pb.Hello, insecure: str) -> PartyError | None:
    """Return what is wrong with a party's greeting, or None.

    Args:
        party_id: the id of the party.
        role: the role that it has in the job.
        hello: what the party says of itself.
        insecure: what is insecure about the coordinator's configuration.
    """
    if hello.protocol_version != PROTOCOL_VERSION or hello.role != role:
        said = f"it speaks version {hello.protocol_version} as {hello.role} (release {hello.release})"
        return PartyError(party_id, f"{said}, expected {PROTOCOL_VERSION} as {role}")
    if hello.release != __version__:
        what = f"it runs release {hello.release[:20]}, this party {__version__}"
        return PartyError(party_id, what, "give all parties the same release")
    if hello.insecure != insecure:
        # Otherwise results under keys that somebody knows would look like any others.
        what = f"its file says: {hello.insecure or 'nothing insecure'}"
        own = insecure or "nothing insecure"
        remedy = "leave [insecure] out of all files, or, for a test, give the same to all"
        return PartyError(party_id, f"{what}; the coordinator's: {own}", remedy)
    return None
