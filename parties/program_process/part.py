"""The process of a program: it prepares one owner's part, and runs it in one session.

It reads lines of JSON on its standard input (`Task`, `Start`, and the budget's word at the model owner), and writes one
for each step on its standard output: "prepared", "agreed", and at the end "done", "refused" or "failed". Whoever
started it ends it when the session is over; it also ends with its standard input, because then that process is gone.

Both owners compare everything that must agree before any share is made. The dealer makes the correlations of the whole
plan, as far as the pool has room, before the inputs are shared.
"""

import json
import logging
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import TypeAdapter

from mpcformer import __version__
from mpcformer.channel import Spec
from mpcformer.engines.base import DATA_OWNER, MODEL_OWNER
from mpcformer.engines.crypten.compat import PartyState, agree_on_zero_key
from mpcformer.engines.crypten.program import RANKS
from mpcformer.errors import PartyError, ProtocolError, UserInputError
from mpcformer.machine import keep_freed_memory
from mpcformer.programs import LoadedProgram, Plan, dry_run, load_program, read_inputs, run_program
from mpcformer.programs.inputs import save_result
from mpcformer.ring.random import fix_keys, scoped_keys
from parties.program_process import link
from parties.program_process.store import ProgramStore
from parties.program_process.task import STREAM, Start, Task
from parties.session import attestation, transcript
from parties.session.audit import Audit
from parties.session.failure import as_known
from parties.session.instructions import GRANTED, answer, receive_answer
from parties.settings import insecure
from parties.settings.config import PROTOCOL_VERSION, DataOwnerConfig, ModelOwnerConfig, OwnerConfig
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import causes
from parties.wire.callers import SESSION_HEADER, STREAM_HEADER
from parties.wire.dealer_link import DealerLink
from parties.wire.frames import open_channel, wait_until_ready
from parties.wire.peer_channel import PeerChannel

POLL_S = 0.5


class Control:
    """The lines between this process and the one that started it."""

    def __init__(self) -> None:
        # What a program prints goes to the log, and is none of these lines.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def _read(self) -> None:
        with os.fdopen(os.dup(0)) as lines:
            for line in lines:
                self._lines.put(line)
        os._exit(1)

    def line(self) -> str:
        """Wait for the next line."""
        return self._lines.get()

    def wait(self) -> NoReturn:
        """Wait for the end of this process."""
        while True:
            self._lines.get()

    def say(self, event: str, **values: Any) -> None:
        """Write one line."""
        self._out.write(json.dumps({"event": event} | values) + "\n")
        self._out.flush()


@dataclass
class Prepared:
    """A program that can be run.

    Args:
        loaded: the program.
        values: this owner's inputs by their names.
        plan: its plan.
    """

    loaded: LoadedProgram
    values: dict[str, torch.Tensor]
    plan: Plan

    def __repr__(self) -> str:
        return f"Prepared({self.loaded.program.name})"


def prepare(task: Task) -> Prepared:
    """Load a program, read this owner's inputs, and plan it.

    Raises:
        UserInputError: the program or an input is not as declared, or the program does what it may not.
    """
    loaded = load_program(task.program)
    ranks = {name: RANKS[found] for name, found in loaded.program.owners.items()}
    own: dict[str, torch.Tensor] = {}
    expected = [name for name, rank in ranks.items() if task.all_inputs or rank == task.rank]
    called = loaded.program.name if task.all_inputs else task.name
    for name in task.inputs:
        if name not in expected:
            known = ", ".join(expected) or "none"
            raise UserInputError(f"input {name}: {called} has no such input of this owner", f"it has {known}")
    missing = [name for name in expected if name not in task.inputs]
    if missing and not task.plan_only:
        what = f"input: {', '.join(missing)} of {called} is missing"
        raise UserInputError(what, "name a file for each input of this owner")
    for name, path in task.inputs.items():
        try:
            values = read_inputs(loaded.program, name, Path(path))
        except UserInputError as error:
            # The path, and the shape of what is in the file, are this owner's own affair.
            told = f"input {name}: the file that its owner names is missing, or not as {task.name} declares it"
            raise UserInputError(f"{error.what}; {error.remedy}", "correct it at its owner", told=told) from None
        if ranks[name] == task.rank:
            own |= values
    return Prepared(loaded, own, dry_run(loaded, ranks=task.ranks, limit_s=task.dry_run_limit_s))


def described(task: Task, prepared: Prepared) -> dict[str, Any]:
    """Return what is told of a program that is prepared."""
    program, plan = prepared.loaded.program, prepared.plan
    return {
        "how": plan.how,
        "n_requests": len(plan.requests),
        "dealer_bytes": plan.dealer_bytes,
        "passed_on_bytes": plan.passed_on_bytes,
        "rounds": plan.rounds,
        "owner_rounds": list(plan.owner_rounds),
        "bytes_sent": list(plan.bytes_sent),
        "n_messages": plan.n_messages,
        "reveal": program.reveal,
        "learns": [name for name in program.reveal if task.rank in program.learners(name)],
        "owners": program.owners,
    }


def play(control: Control, descriptor: int) -> NoReturn:
    """Do what the lines of standard input say, until this process is ended; see `main`."""
    task = Task.of(control.line())
    torch.set_num_threads(task.threads)
    prepared = prepare(task)
    control.say("prepared", **described(task, prepared))
    start = Start.of(control.line())
    config: ModelOwnerConfig | DataOwnerConfig = TypeAdapter(OwnerConfig).validate_json(start.config)
    job = pb.Job.FromString(bytes.fromhex(start.job))
    seed = insecure.fixed_seed(config.insecure)
    if seed is not None:
        fix_keys(seed, config.id)
    with scoped_keys("program", job.session_id):
        _Run(control, task, prepared, start, config, job, descriptor).run()


class _Run:
    """One run of a program at one owner."""

    def __init__(
        self,
        control: Control,
        task: Task,
        prepared: Prepared,
        start: Start,
        config: ModelOwnerConfig | DataOwnerConfig,
        job: pb.Job,
        descriptor: int,
    ) -> None:
        self._descriptor = descriptor
        self._control, self._task, self._prepared, self._start = control, task, prepared, start
        self._config, self._job, self._rank = config, job, task.rank
        self._peer = job.data_owner if task.rank == MODEL_OWNER else job.model_owner
        self._channel = PeerChannel(party_id=config.id, peer_id=self._peer, session_id=job.session_id, stream=STREAM)

    def run(self) -> NoReturn:
        """Run the program, save the results, say how it went, and wait for the end of this process."""
        with ExitStack() as left:
            job = self._job
            dealer = DealerLink(job.dealer, job.dealer_address, self._config.credentials, job.session_id)
            left.callback(dealer.close)
            self._join(left)
            left.enter_context(self._patience(dealer))
            try:
                self._compute(dealer)
            except Exception as error:
                self._channel.abort(as_known(error, self._config.id))
                raise
            # What was sent may still be on its way, and would be lost with the connection. Whoever started this process
            # ends it when both owners are done.
            self._control.wait()

    def _join(self, left: ExitStack) -> None:
        if self._rank == MODEL_OWNER:
            link.join(self._descriptor, self._channel)
            return
        job, config = self._job, self._config
        owner = left.enter_context(open_channel(job.model_owner_address, job.model_owner, config.credentials))
        wait_until_ready(owner, job.model_owner, job.model_owner_address, config.join_timeout_s)
        headers = (SESSION_HEADER, job.session_id), (STREAM_HEADER, STREAM)
        call = rpc.PeerStub(owner).Exchange(self._channel.outgoing(), metadata=headers)
        self._channel.attach(call, call.cancel)

    def _compute(self, dealer: DealerLink) -> None:
        channel, loaded, plan = self._channel, self._prepared.loaded, self._prepared.plan
        reply = dealer.open(self._config.join_timeout_s)
        attestation.check(self._config.check_dealer, self._job.dealer, bytes(reply.evidence))
        # Nobody chooses what keys are bound to, as in a session of a student.
        drawn_id = transcript.draw_together(channel, self._rank, self._job.session_id)
        agreed = transcript.compare(
            channel, self._facts(drawn_id), "give both owners the same file of the program, release and torch"
        )
        key = agree_on_zero_key(channel, self._rank)
        audit = Audit(
            rank=self._rank,
            rate=self._config.audit_rate,
            channel=channel,
            session_id=drawn_id,
            dealer=self._job.dealer,
        )
        store = ProgramStore(
            rank=self._rank,
            seed=bytes(reply.seed),
            drawn_id=drawn_id,
            plan=plan.requests,
            dealer=dealer,
            channel=channel,
            pool_bytes=self._pool_bytes(),
            audit=audit,
        )
        began = time.perf_counter()
        store.deal()
        # The data owner expands its seed, and hears with the budget's word that the model owner has its part.
        if not self._is_granted(plan):
            return
        dealt_s = time.perf_counter() - began
        # Both owners count from here on, as the plan does.
        channel.counters.rounds = 0
        before, began = channel.counters.copy(), time.perf_counter()
        state = PartyState(rank=self._rank, channel=channel, store=store, zero_key=key)
        results = run_program(loaded, state, self._prepared.values)
        if store.n_left:
            raise ProtocolError(f"program: {store.n_left} of {len(plan.requests)} planned correlations were not used")
        store.end()
        seconds = time.perf_counter() - began
        channel.finish()
        for name, value in results.items():
            save_result(Path(self._start.results) / f"{name}.npy", value)
        counted = channel.counters.minus(before)
        self._control.say(
            "done",
            rounds=counted.rounds,
            bytes_received=counted.bytes_received,
            bytes_sent=counted.bytes_sent,
            bytes_from_dealer=store.bytes_from_dealer,
            dealing_seconds=dealt_s,
            seconds=seconds,
            correlations=len(plan.requests) - store.n_left,
            audited=store.n_audited,
            transcript=agreed.hex(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def _facts(self, drawn_id: bytes) -> dict[str, str]:
        """Return name -> value of everything that both owners must agree on."""
        program, job = self._prepared.loaded.program, self._job
        declared = sorted((name, found.owner, found.shape, found.whole) for name, found in program.inputs.items())
        return {
            "protocol version": str(PROTOCOL_VERSION),
            "release": __version__,
            "torch": torch.__version__.partition("+")[0],
            "session": job.session_id.hex(),
            "drawn id": drawn_id.hex(),
            "insecure": insecure.text(self._config.insecure),
            "audit_rate": str(float(self._config.audit_rate)),
            **{f"job.{name}": getattr(job, name) for name in ("program", "dealer", "model_owner", "data_owner")},
            "the program's file": self._prepared.loaded.digest,
            "the program's declaration": repr(
                (program.name, declared, sorted(program.reveal.items()), program.comparisons)
            ),
            "the program's constants": repr(sorted(program.agreed.items())),
            "the program's plan": self._prepared.plan.digest.hex(),
        }

    def _pool_bytes(self) -> int:
        """Take the smaller number of both owners, as in a session of a student."""
        channel, mine = self._channel, self._config.pool_mib << 20
        if self._rank == MODEL_OWNER:
            channel.send([torch.tensor([mine])])
            theirs = int(channel.receive([Spec(torch.int64, (1,))])[0])
            if not 1 <= theirs <= mine:
                raise ProtocolError(f"the data owner's pool of {theirs} bytes is outside 1..{mine}")
            return theirs
        allowed = min(int(channel.receive([Spec(torch.int64, (1,))])[0]), mine)
        channel.send([torch.tensor([allowed])])
        return allowed

    def _is_granted(self, plan: Plan) -> bool:
        """Let the model owner's budget decide, after all is dealt and before anything is shared."""
        if self._rank == MODEL_OWNER:
            learnt = [name for name in plan.results if DATA_OWNER in self._prepared.loaded.program.learners(name)]
            n_numbers = sum(torch.Size(plan.results[name]).numel() for name in learnt)
            self._control.say("agreed", n_numbers=n_numbers)
            word = int(self._control.line())
            answer(self._channel, word)
        else:
            word = receive_answer(self._channel)
        if word == GRANTED:
            return True
        self._channel.finish()
        self._control.say("refused", word=word)
        return False

    @contextmanager
    def _patience(self, dealer: DealerLink) -> Iterator[None]:
        """End the run if the other owner or the dealer keeps this owner waiting for too long."""
        done, limit_s = threading.Event(), self._config.deadline_s

        def watch() -> None:
            while not done.wait(POLL_S):
                waited = (self._peer, self._channel.waited_s()), (self._job.dealer, dealer.waited_s())
                for party, waited_s in waited:
                    if waited_s > limit_s:
                        self._channel.abort(causes.kept_waiting(party, limit_s))
                        dealer.close()
                        return

        threading.Thread(target=watch, name="patience", daemon=True).start()
        try:
            yield
        finally:
            done.set()


def failure(error: BaseException) -> dict[str, Any]:
    """Return what is told of an error to the process that started this one."""
    known = as_known(error, "")
    culprit = known.party if isinstance(known, PartyError) else ""
    what = known.what.removeprefix(f"{culprit}: ")
    return {
        "what": what,
        "remedy": known.remedy,
        "told": known.told.removeprefix(f"{culprit}: "),
        "exit_code": known.exit_code,
        "culprit": culprit,
    }


def main(descriptor: int = -1) -> None:
    """Play a part, and end the process.

    Args:
        descriptor: at the model owner, where the data owner's frames come from.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    control = Control()
    try:
        play(control, descriptor)
    except Exception as error:
        control.say("failed", **failure(error))
    logging.shutdown()
    # gRPC's threads may still be waiting for peers that are gone, and would keep the process alive.
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
