"""What each party does in the session of a program: it is started as a process, and told by a file what to do.

Both owners plan the program themselves, compare everything that must agree before any share is made, and let the dealer
make the correlations of the whole plan. The model owner's corrections arrive while they are used where the plan is
larger than its pool. A party reports its end in a file; results stay with who learns them.
"""

import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch

from mpcformer import __version__
from mpcformer.channel import Channel, Spec
from mpcformer.correlations import CorrelationStore, Dealt, Request, correction_specs
from mpcformer.engines.crypten.compat import PartyState
from mpcformer.errors import MPCFormerError, PartyError, ProtocolError
from mpcformer.files import write_text
from mpcformer.programs import LoadedProgram, Plan, dry_run, load_program, read_input, run_program
from mpcformer.programs.inputs import save_result
from mpcformer.ring.random import derive_key, fresh_key
from parties.programs.task import DATA_OWNER, DEALER, MODEL_OWNER, OWNERS, Task
from parties.roles.dealer import DealerService
from parties.roles.model_owner import PeerService
from parties.session import transcript
from parties.session.failure import as_known
from parties.settings.config import PROTOCOL_VERSION
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER
from parties.wire.correlation_requests import to_wire
from parties.wire.frames import StreamEndedError, from_frames, open_channel, start_server
from parties.wire.peer_channel import PeerChannel

log = logging.getLogger(__name__)
STREAM = "program"
ANYWHERE = "127.0.0.1:0"
CONNECT_TIMEOUT_S = 60.0


def take_part(task: Task) -> int:
    """Do a party's part, report its end, and return the exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(task.threads)
    try:
        found = _deal(task) if task.role == DEALER else _compute(task)
        status = 0
    except Exception as error:
        known = as_known(error, task.role)
        culprit = known.party if isinstance(known, PartyError) else task.role
        found = {"what": known.what, "remedy": known.remedy, "exit_code": known.exit_code, "culprit": culprit}
        status = known.exit_code
    write_text(task.report, json.dumps(found))
    return status


def _deal(task: Task) -> dict[str, Any]:
    service = DealerService(DEALER, list(OWNERS))
    server, address = start_server(lambda s: rpc.add_DealerServicer_to_server(service, s), ANYWHERE, task.tls)
    with service.session(task.session_id, MODEL_OWNER, DATA_OWNER):
        write_text(task.address_file(DEALER), address)
        while sys.stdin.buffer.read(1024):
            pass
    server.stop(grace=0.5).wait(2.0)
    return {}


def _compute(task: Task) -> dict[str, Any]:
    loaded = load_program(task.program)
    if loaded.digest != task.digest:
        raise ProtocolError("program: its file has changed since the run began", "run it again")
    mine = {name: declared for name, declared in loaded.program.inputs.items() if declared.rank == task.rank}
    values = {name: read_input(name, declared, task.inputs[name]) for name, declared in mine.items()}
    plan = dry_run(loaded, ranks=(task.rank,))
    with ExitStack() as left:
        channel = PeerChannel(party_id=task.role, peer_id=task.peer, session_id=task.session_id, stream=STREAM)
        dealer = rpc.DealerStub(left.enter_context(open_channel(task.address_of(DEALER), DEALER, task.tls)))
        left.enter_context(_joined(task, channel))
        left.enter_context(_patience(task, channel))
        try:
            return _run(task, loaded, values, plan, channel, dealer)
        except Exception as error:
            channel.abort(as_known(error, task.role))
            raise


def _run(
    task: Task,
    loaded: LoadedProgram,
    values: dict[str, torch.Tensor],
    plan: Plan,
    channel: PeerChannel,
    dealer: rpc.DealerStub,
) -> dict[str, Any]:
    seed = _seed(task, dealer)
    _compare(channel, task, loaded, plan)
    own = fresh_key()
    channel.send([torch.frombuffer(bytearray(own), dtype=torch.uint8)])
    theirs = bytes(channel.receive([Spec(torch.uint8, (len(own),))])[0].tolist())
    halves = (own, theirs) if task.rank == 0 else (theirs, own)
    # Nobody chooses what keys are bound to, as in a session of a model.
    drawn_id = transcript.draw_together(channel, task.rank, task.session_id)
    store = ProgramStore(task, seed, drawn_id, plan.requests, dealer)
    before, start = channel.counters.copy(), time.perf_counter()
    state = PartyState(
        rank=task.rank, channel=channel, store=store, zero_key=derive_key(halves[0], "zero sharing", halves[1])
    )
    results = run_program(loaded, state, values)
    counted = channel.counters.minus(before)
    if store.n_left:
        raise ProtocolError(f"program: {store.n_left} of {len(plan.requests)} planned correlations were not used")
    channel.finish()
    task.results.mkdir(exist_ok=True)
    for name, value in results.items():
        save_result(task.results / f"{name}.npy", value)
    return {
        "rounds": counted.rounds,
        "bytes_received": counted.bytes_received,
        "bytes_from_dealer": store.bytes_from_dealer,
        "seconds": time.perf_counter() - start,
        "correlations": len(plan.requests),
    }


class ProgramStore:
    """An owner's correlations of a program, in the order of its plan.

    The model owner's corrections are read from the dealer's stream: all of them at once, as far as the pool has room,
    and then each when it is needed.

    Args:
        task: the party's.
        seed: from the dealer.
        drawn_id: what both owners have drawn for this run, 16 bytes.
        plan: the requests.
        dealer: where the corrections come from.
    """

    def __init__(self, task: Task, seed: bytes, drawn_id: bytes, plan: list[Request], dealer: rpc.DealerStub) -> None:
        self.bytes_from_dealer = 0
        self._task, self._plan = task, plan
        self._store = CorrelationStore(rank=task.rank, seed=seed, session_id=drawn_id)
        self._n_here = 0
        self._frames: Iterator[pb.Frame] = iter(())
        if task.rank == 0 and plan:
            wanted = [to_wire(request) for request in plan]
            request = pb.DealRequest(session_id=task.session_id, drawn_id=drawn_id, plan=wanted)
            self._frames = dealer.Deal(iter([request]))
            room = task.pool_bytes
            while self._n_here < len(plan) and room > 0:
                room -= self._receive()

    @property
    def n_left(self) -> int:
        """How many correlations were planned and not used."""
        return len(self._plan) - self._store.next_operation

    def take(self, request: Request) -> Dealt:
        """Return the next operation's correlation.

        Raises:
            ProtocolError: the program asks for another one than it planned.
        """
        operation = self._store.next_operation
        planned = self._plan[operation] if operation < len(self._plan) else None
        if planned != request:
            raise ProtocolError(
                f"program: operation {operation} was planned as {planned and planned.kind}, now {request} is asked for",
                "let the program do the same whatever its values are",
            )
        if self._task.rank == 0 and operation >= self._n_here:
            self._receive()
        return self._store.take(request)

    def _receive(self) -> int:
        request = self._plan[self._n_here]
        try:
            correction, n_bytes = from_frames(
                self._frames,
                correction_specs(request),
                session_id=self._task.session_id,
                sender=DEALER,
                operation=self._n_here,
            )
        except grpc.RpcError as error:
            raise causes.of_call(DEALER, error) from None
        except StreamEndedError:
            raise causes.connection_ended(DEALER) from None
        self._store.put(self._n_here, request, correction)
        self._n_here += 1
        self.bytes_from_dealer += n_bytes
        return n_bytes


@contextmanager
def _joined(task: Task, channel: PeerChannel) -> Iterator[None]:
    """Join the stream between the owners: the model owner serves, the data owner calls."""
    if task.rank == 0:
        peers = PeerService([DATA_OWNER])
        server, address = start_server(lambda s: rpc.add_PeerServicer_to_server(peers, s), ANYWHERE, task.tls)
        try:
            with peers.expect(task.session_id, DATA_OWNER, {STREAM: channel}):
                write_text(task.address_file(MODEL_OWNER), address)
                yield
        finally:
            server.stop(grace=0.5).wait(2.0)
        return
    with open_channel(task.address_of(MODEL_OWNER), MODEL_OWNER, task.tls) as link:
        headers = (SESSION_HEADER, task.session_id), (STREAM_HEADER, STREAM)
        call = rpc.PeerStub(link).Exchange(channel.outgoing(), metadata=headers, wait_for_ready=True)
        channel.attach(call, call.cancel)
        yield


@contextmanager
def _patience(task: Task, channel: PeerChannel) -> Iterator[None]:
    """End the session if the other owner keeps this one waiting for too long."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if channel.waited_s() > task.patience_s:
                channel.abort(causes.silent(task.peer, task.patience_s))
                return

    threading.Thread(target=watch, name="patience", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _seed(task: Task, dealer: rpc.DealerStub) -> bytes:
    try:
        request = pb.OpenSessionRequest(session_id=task.session_id)
        reply = dealer.OpenSession(iter([request]), timeout=CONNECT_TIMEOUT_S, wait_for_ready=True)
    except grpc.RpcError as error:
        raise causes.of_call(DEALER, error) from None
    return bytes(reply.seed)


def _compare(channel: Channel, task: Task, loaded: LoadedProgram, plan: Plan) -> None:
    """Compare what both owners must agree on.

    Raises:
        ProtocolError: some fields differ; the error names them.
    """
    program = loaded.program
    declared = {name: (found.owner, found.shape) for name, found in program.inputs.items()}
    transcript.compare(
        channel,
        {
            "protocol version": str(PROTOCOL_VERSION),
            "release": __version__,
            "torch": torch.__version__.partition("+")[0],
            "session": task.session_id.hex(),
            "the program's file": loaded.digest,
            "the program's declaration": repr((program.name, sorted(declared.items()), sorted(program.reveal.items()))),
            "the program's plan": plan.digest.hex(),
        },
        "give both owners the same file of the program, the same release and the same torch",
    )


def main() -> None:
    """Take part as the file that the command line names says, and end the process."""
    task = Task.load(Path(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        status = take_part(task)
    except MPCFormerError as error:
        log.error("%s", error)
        status = error.exit_code
    logging.shutdown()
    # gRPC's threads may still be waiting for peers that are gone, and would keep the process alive.
    os._exit(status)


if __name__ == "__main__":
    main()
