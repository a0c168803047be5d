"""The commands `mpcformer infer`, `party`, `coordinate`, `certs` and `export`."""

import datetime
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mpcformer import options
from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import SOME_REFUSED, UserInputError
from mpcformer.files import check_temporary_folder
from mpcformer.options import INPUT, MACHINE, OUTPUT, Command, choice, flag, option
from mpcformer.tasks import EVAL, OWN_DATA, OwnData


def _devices() -> Iterable[str]:
    from parties.settings.config import Device

    return get_args(Device)


def _metrics() -> Iterable[str]:
    from mpcformer.tasks.metrics import METRICS

    return METRICS


def _networks() -> Iterable[str]:
    from parties.runs.network import PROFILES

    return ("none", *PROFILES)


def _pools() -> Iterable[str]:
    from parties.runs.cluster import POOLS

    return POOLS


def _known_network(given: str) -> str:
    """Return the value of --network.

    Raises:
        UserInputError: it is no network.
    """
    from parties.runs.network import network_profile

    network_profile(given)
    return given


# The options of the machine, as `bench` and `estimate` take them too.
Network = Annotated[
    str,
    choice("--network", _networks, group=MACHINE, about="The parties' link: {}, or RTT_MS,MBIT.", check=_known_network),
]
Threads = Annotated[int, option(group=MACHINE, about="CPU threads of each party.")]
Device = Annotated[str, choice("--device", _devices, group=MACHINE, about="Where the parties multiply: {}.")]

Student = Annotated[Path, options.folder("--student", group=INPUT, about="Folder of a distilled student.")]
Resume = Annotated[bool, flag("--resume", group=OUTPUT, about="Go on with the unfinished run of this --out.")]
RunFolder = Annotated[Path | None, option(group=OUTPUT, about="New folder; default: runs/TASK-TIME.")]


def _ways() -> Iterable[str]:
    from parties.settings.job import ON_REFUSAL

    return ON_REFUSAL


def _show(values: dict[str, Any], out: Path) -> None:
    """Show the results of a run, and end with another status if some examples were refused."""
    from parties.runs import report

    report.show(values, out)
    if values["refused"]["examples"]:
        raise typer.Exit(SOME_REFUSED)


def _check_resume(resume: bool, out: Path | None) -> None:
    """Refuse --resume without --out, before anything is loaded.

    Raises:
        UserInputError: the folder of the unfinished run is not given.
    """
    if resume and out is None:
        raise UserInputError("--resume: --out is missing", "give the folder of the run to go on with")


def infer(
    student: Student,
    teacher: Annotated[
        Path | None,
        options.folder("--teacher", group=INPUT, about="To compare with; default: the student's own."),
    ] = None,
    gelu: Annotated[str | None, options.gelu(INPUT, "Refuse another form; one of {}.")] = None,
    softmax: Annotated[str | None, options.softmax(INPUT, "Refuse another form; one of {}.")] = None,
    task: Annotated[str | None, options.task("Default: the student's own. One of {}.")] = None,
    data: Annotated[
        Path | None,
        option("--data", group=INPUT, about="Your own file, with or without labels, instead of --task."),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        options.column("--text-column", "Its column of text, given twice for a pair; default: guessed."),
    ] = None,
    label_column: Annotated[
        str | None, options.column("--label-column", 'Its column of labels; default: guessed; "": none.')
    ] = None,
    metrics: Annotated[
        list[str] | None, choice("--metrics", _metrics, group=INPUT, about="Report these; of {}.")
    ] = None,
    data_dir: Annotated[
        Path | None, options.folder("--data-dir", group=INPUT, about="Folder of parquet files; default: download.")
    ] = None,
    split: Annotated[str, option(group=INPUT, about="A split's name, or eval.")] = EVAL,
    limit: Annotated[int | None, option(group=INPUT, about="Number of examples, drawn by hash; default: all.")] = None,
    max_length: Annotated[
        int | None, option(group=INPUT, about="Cut texts to this many tokens, or refuse longer ones.")
    ] = None,
    engine: Annotated[str, options.engine("The private protocols: {}.")] = DEFAULT_ENGINE,
    embeddings: Annotated[str, options.embeddings("The first of {}; the second is disclosed.")] = "private_table",
    batch_size: Annotated[int, option(group=MACHINE, about="Sentences that share every round.")] = 16,
    network: Network = "none",
    threads: Threads = 1,
    device: Device = "cpu",
    port: Annotated[int, option(group=MACHINE, about="First of three fixed ports; 0: any free ones.")] = 0,
    deadline_s: Annotated[float, option(group=MACHINE, about="Longest wait for another party, in seconds.")] = 300.0,
    pool: Annotated[
        str,
        choice("--pool", _pools, group=MACHINE, about="{}; then --jobs N and --ray-address A."),
    ] = "local",
    # The help of --pool names these two, and one screen has no more room.
    jobs: Annotated[
        int, option(group=MACHINE, about="With --pool ray: simulations at the same time.", hidden=True)
    ] = 2,
    ray_address: Annotated[
        str | None, option(group=MACHINE, about="The cluster; default: RAY_ADDRESS, else this machine.", hidden=True)
    ] = None,
    on_refusal: Annotated[
        str, choice("--on-refusal", _ways, group=OUTPUT, about="When a text is refused: {}.")
    ] = "skip",
    resume: Resume = False,
    out: RunFolder = None,
) -> None:
    """Run a student privately, with every party as a process of this machine.
    The parties are semi-honest and do not collude; the dealer is trusted for randomness only.

    Example: mpcformer infer --student runs/demo/student --limit 64 --network wan
    """
    _check_resume(resume, out)
    check_temporary_folder()
    from mpcformer.console import console
    from mpcformer.tasks import described
    from parties.runs import local_run
    from parties.runs.network import network_profile
    from parties.runs.parts import Pool
    from parties.runs.simulation import LocalRunOptions
    from parties.settings.job import JobDescription

    own = _own_data(data, text_column, label_column, task=task, data_dir=data_dir, split=split)
    name = OWN_DATA if own else task or local_run.task_of(student)
    job = JobDescription(
        task=name,
        split=split,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        engine=engine,
        embeddings=embeddings,
        on_refusal=on_refusal,
    )
    run_options = LocalRunOptions(
        student=student,
        teacher=teacher or local_run.teacher_of(student),
        job=job,
        data_dir=data_dir,
        data=own,
        metrics=tuple(metrics or ()),
        network=network_profile(network),
        port=port,
        threads=threads,
        device=device,
        deadline_s=deadline_s,
    )
    folder = out or Path("runs") / f"{own.path.stem if own else name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if ray_address and pool != "ray":
        raise UserInputError(f"--ray-address: {ray_address} is for --pool ray", "add --pool ray, or leave it out")
    cluster = Pool(jobs, ray_address) if pool == "ray" else None
    local_run.check(run_options, folder, gelu=gelu, softmax=softmax, pool=cluster)
    if own:
        console.print(described(own), soft_wrap=True, markup=False)
    _show(local_run.run(run_options, folder, resume=resume, pool=cluster), folder)


def _own_data(
    path: Path | None, text_columns: list[str] | None, label_column: str | None, **not_with: object
) -> OwnData | None:
    """Return the file of own data, or None if the job is on a task of the registry.

    Raises:
        UserInputError: options were given that do not go together.
    """
    if path is None:
        for option_name, given in (("--text-column", text_columns or None), ("--label-column", label_column)):
            if given is not None:
                raise UserInputError(
                    f"{option_name}: it names a column of --data, which is missing", "give --data FILE"
                )
        return None
    for name, value in not_with.items():
        if value not in (None, EVAL):
            raise UserInputError(
                f"--data: it was given with --{name.replace('_', '-')}, which is for tasks of the registry",
                "give one of the two",
            )
    if not path.exists():
        raise UserInputError(f"--data: {path} does not exist", "check the path")
    return OwnData(path, tuple(text_columns or ()), label_column)


def party(
    config: Annotated[
        Path, options.file("--config", group=INPUT, about="The party's own TOML file, which says what it is.")
    ],
    once: Annotated[
        bool, flag("--once", group=INPUT, about="Serve one session only, and end with its exit status.")
    ] = False,
    ready: Annotated[
        bool, flag("--ready", group=INPUT, about="Start nothing: ask whether the service runs here and takes sessions.")
    ] = False,
) -> None:
    """Start one party from its file: a dealer, a model owner or a data owner.

    A data owner does its job and ends. A dealer and a model owner serve until SIGTERM.

    Example: mpcformer party --config dealer.toml
    """
    if ready:
        from mpcformer.console import console
        from parties.diagnosis.ready import check_ready

        console.print(f"{check_ready(config)} takes sessions", markup=False)
        return
    from parties.roles.start_party import run_and_exit

    run_and_exit(config, once=once)


def coordinate(
    config: Annotated[Path, options.file("--config", group=INPUT, about="The coordinator's TOML file.")],
    resume: Resume = False,
    out: RunFolder = None,
) -> None:
    """Run one job between parties that their owners started, and report it.

    Example: mpcformer coordinate --config coordinator.toml --out runs/first
    """
    _check_resume(resume, out)
    from parties.runs import deployed_run
    from parties.settings.config_file import load_coordinator

    settings = load_coordinator(config)
    folder = out or Path("runs") / f"{settings.job.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    _show(deployed_run.run(settings, folder, resume=resume), folder)


certs = typer.Typer(no_args_is_help=True, help="Make the parties' certificates, or renew some of them.")
Party = Annotated[list[str], option(group=INPUT, about="A party's id; give the option again for each party.")]
Days = Annotated[int, option(group=INPUT, about="How many days the certificates are valid.")]


@certs.command("init", cls=Command)
def certs_init(
    party: Party,
    out: Annotated[Path, option(group=OUTPUT, about="New folder for all certificates and keys.")],
    days: Days = 30,
) -> None:
    """Make an authority, and a certificate with its key for each party.

    Example: mpcformer certs init --party dealer --party model-owner --out certs
    """
    from mpcformer.console import console
    from mpcformer.files import check_new_folder
    from parties.wire.tls import make_certificates

    check_new_folder(out)
    validity = _checked(party, days)
    make_certificates(out, party, validity, keep_authority=True)
    console.print(
        f"{out}: authority.pem for everybody; for each of {', '.join(party)} its .pem and its .key, for it alone."
    )
    console.print(f"Valid for {days} days. To renew them: mpcformer certs renew --certs {out} --party ID")
    console.print(
        f"{out / 'authority.key'} signs certificates in anybody's name: keep it offline, away from all parties."
    )


@certs.command("renew", cls=Command)
def certs_renew(
    certs: Annotated[
        Path, options.folder("--certs", group=INPUT, about="The folder that certs init made, with authority.key.")
    ],
    party: Party,
    days: Days = 30,
) -> None:
    """Make certificates and keys anew, from the same authority.

    A party that serves takes them without a restart.

    Example: mpcformer certs renew --certs certs --party dealer
    """
    from mpcformer.console import console
    from parties.wire.tls import renew_certificates

    validity = _checked(party, days)
    renew_certificates(certs, party, validity)
    console.print(f"{certs}: a new .pem and .key for each of {', '.join(party)}, for it alone; valid for {days} days.")


def _checked(party: list[str], days: int) -> datetime.timedelta:
    """Return how long certificates are valid, after checking the ids and the number of days.

    Raises:
        UserInputError: an id that cannot stand in a certificate or is given twice, or a life too short or too long.
    """
    if not 1 <= days <= 365:
        raise UserInputError(
            f"--days: {days} is outside 1..365", "give a number from there; keep it short, for renewing takes a second"
        )
    bad = [name for name in party if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name) or party.count(name) > 1]
    if bad or "authority" in party:
        raise UserInputError(
            f"--party: {(bad or ['authority'])[0]!r} is not a possible id, or is given twice",
            "use at most 63 letters, digits, - and _; 'authority' is taken",
        )
    return datetime.timedelta(days=days)


def export(
    student: Student,
    out: Annotated[Path, option(group=OUTPUT, about="New folder.")],
) -> None:
    """Copy what a data owner needs of a student, which is everything but its weights.

    Example: mpcformer export --student runs/demo/student --out public
    """
    from mpcformer.console import console
    from mpcformer.files import check_new_folder
    from mpcformer.modeling import load_student, load_tokenizer
    from parties.settings.public_files import export_public

    check_new_folder(out)
    load_student(student)
    load_tokenizer(student)
    if out.is_dir():
        out.rmdir()
    export_public(student, out)
    console.print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}. Give it to the data owner.")
