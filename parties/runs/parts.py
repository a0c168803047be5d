"""A job in parts on the machines of a Ray cluster, each part a whole simulation: all parties, and batches of its own.

A part begins with the operation that it would begin with in the whole job. So its results do not depend on how the job
was cut, and under fixed keys the engine `lift` gives each text the same bits as in one session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import PartyError, UserInputError
from mpcformer.modeling import load_tokenizer
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import encode, length_batches, load_job
from parties.roles.coordinator import JobPart, left_range
from parties.roles.journal import FILE_NAME, Journal
from parties.roles.results import Results, merged
from parties.runs import cluster
from parties.runs.simulation import ROLES, LocalRunOptions, simulate
from parties.settings.config import Role
from parties.stubs import parties_pb2 as pb
from parties.wire import causes

# So many parts for each simulation at a time: who is faster takes more of them, and one that fails costs less.
PARTS_EACH = 2
OWNERS: tuple[Role, Role] = ("model-owner", "data-owner")


@dataclass(frozen=True)
class Pool:
    """The simulations of a Ray cluster.

    Args:
        jobs: how many run at the same time, on all machines together.
        address: the address of the cluster; `cluster.run` explains None.
    """

    jobs: int
    address: str | None = None


@dataclass(frozen=True)
class PartResults:
    """What a part gave, as a cluster brings it back: messages as their bytes.

    Args:
        batches: of each batch the message of the model owner, and that of the data owner.
        reports: the last report of each party.
        session_id: the id of its session.
        seconds: see `Results`.
    """

    batches: Sequence[tuple[bytes, bytes]]
    reports: Mapping[Role, bytes]
    session_id: bytes
    seconds: float


def check(pool: Pool, port: int) -> None:
    """Check that a cluster answers and that nothing stands against several simulations on one machine.

    Raises:
        UserInputError: an option is wrong, or nobody listens at the address.
        DependencyError: Ray is not installed.
    """
    if pool.jobs < 1:
        raise UserInputError(f"--jobs: {pool.jobs} is below 1", "give a positive number")
    if port:
        what = f"--port: {port} with --pool ray, where several simulations may run on one machine"
        raise UserInputError(what, "leave --port out")
    cluster.check(pool.address)


def parts_of(options: LocalRunOptions, n_parts: int, begin: int = 0) -> list[JobPart]:
    """Cut the batches of a job from `begin` on into parts of about the same number; at least one, perhaps empty.

    Raises:
        UserInputError: the data are wrong.
    """
    job, public = options.job, load_public_model(options.student, options.job.embeddings)
    data = load_job(
        job.task,
        job.split,
        public.config,
        "--student",
        data_dir=options.data_dir,
        own=options.data,
        limit=job.limit,
    )
    tokenizer = load_tokenizer(options.student)
    encoded = encode(tokenizer, data.examples, limits=Limits.of(public.config), max_length=job.max_length)
    lengths = [len(row.input_ids) for row in encoded]
    engine = create_engine(job.engine, rank=1, public=public, channel=None, weights=None)
    sizes: dict[BatchShape, int] = {}
    starts = [0]
    for batch in length_batches(lengths, job.batch_size):
        shape = BatchShape(len(batch), max(lengths[row] for row in batch))
        if shape not in sizes:
            sizes[shape] = sum(map(len, engine.plan(shape)))
        starts.append(starts[-1] + sizes[shape])
    n_batches = len(starts) - 1
    n_parts = max(1, min(n_parts, n_batches - begin))
    cuts = [begin + (n_batches - begin) * number // n_parts for number in range(n_parts + 1)]
    return [JobPart(first, end, starts[first]) for first, end in pairwise(cuts)]


def run_part(options: LocalRunOptions, part: JobPart, logs: Path, threads: int = 1) -> PartResults:
    """Run one part, on this machine.

    Args:
        options: the whole job.
        part: the part.
        logs: a folder for the parties' logs.
        threads: the processor cores that a cluster gives it; each party has the threads that the options name.

    Raises:
        MPCFormerError: a party failed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    journal = Journal(logs / FILE_NAME, options.job.to_json(), begin=part.begin)
    try:
        results = simulate(options, logs, journal, part=part)
    finally:
        journal.close()
    return PartResults(
        [(first.SerializeToString(), second.SerializeToString()) for first, second in journal.batches],
        {role: results.reports[role].SerializeToString() for role in ROLES},
        results.session_id,
        results.seconds,
    )


def run_in_parts(options: LocalRunOptions, logs: Path, journal: Journal, pool: Pool) -> Results:
    """Run what is left of a job on a cluster, and add its batches to the journal, in order.

    Args:
        options: the whole job.
        logs: the folder for the parties' logs, one below it for each part. All machines must share it.
        journal: the journal of the whole job.
        pool: the cluster.

    Raises:
        UserInputError: no cluster answers.
        MPCFormerError: a part failed; the parts under way are finished first.
    """
    whole = replace(options, job=replace(options.job, on_refusal="skip"), student=options.student.resolve())
    parts = parts_of(whole, pool.jobs * PARTS_EACH, journal.next_batch)
    calls = [
        cluster.Call(f"batches {part.begin + 1} to {part.end}", (whole, part, logs.resolve() / f"part-{number}"))
        for number, part in enumerate(parts)
    ]
    done: dict[int, PartResults] = {}

    def take(call: cluster.Call, found: PartResults) -> None:
        done[call.arguments[1].begin] = found
        while (ready := done.get(journal.next_batch)) is not None and ready.batches:
            _add(journal, ready)

    cluster.run(
        run_part,
        calls,
        jobs=pool.jobs,
        address=pool.address,
        gpu=options.device == "cuda",
        verb="done",
        done=take,
    )
    results = _results(journal, [done[part.begin] for part in parts])
    if options.job.on_refusal == "stop" and any(results.predictions.refused):
        raise left_range("data-owner")
    return results


def _add(journal: Journal, part: PartResults) -> None:
    """Add the batches of a part to the journal, if they are of the same models and data as those before them."""
    for first, second in part.batches:
        model_owner, data_owner = pb.Batch.FromString(first), pb.Batch.FromString(second)
        if journal.batches and (model_owner.student, data_owner.batch_plan) != (journal.student, journal.batch_plan):
            what = "the student, the data or the job on one of the machines"
            raise PartyError("data-owner", *causes.not_as_begun(what))
        journal.add(model_owner, data_owner)


def _results(journal: Journal, parts: Sequence[PartResults]) -> Results:
    """Return the results of the whole job; sizes are those of the largest part, and seconds those of all together."""
    reports: dict[Role, pb.Report] = {}
    for role in ROLES:
        each = [pb.Report.FromString(part.reports[role]) for part in parts]
        reports[role] = each[0]
        reports[role].peak_rss_bytes = max(report.peak_rss_bytes for report in each)
    return Results(
        batches={role: [pair[n].report for pair in journal.batches] for n, role in enumerate(OWNERS)},
        n_resumed=journal.n_resumed,
        predictions=merged([data_owner.predictions for _, data_owner in journal.batches]),
        reports=reports,
        session_id=parts[0].session_id,
        seconds=sum(part.seconds for part in parts),
    )
