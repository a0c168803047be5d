"""The commands `mpcformer infer`, `party`, `coordinate`, `certs` and `export`."""

import datetime
import re
import time
from pathlib import Path
from typing import Annotated

import typer

from mpcformer.engines.registry import DEFAULT_ENGINE, ENGINES, resolve

ENGINE = "; ".join(f"{name}: {entry.about}" for name, entry in ENGINES.items()) + "."


def infer(
    student: Annotated[Path, typer.Option(help="Folder of a distilled student.")],
    task: Annotated[
        str | None, typer.Option(help="movie-sentiment, a GLUE task, or imdb; default: the one it was distilled for.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of parquet files; default: hub, or PyPI (demo task).")
    ] = None,
    split: Annotated[
        str, typer.Option(help="A split's name, or eval: those that are reported (validation; of imdb test).")
    ] = "eval",
    limit: Annotated[int | None, typer.Option(help="Examples, drawn by hash; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sentences that share every round.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(help="Cut texts to so many tokens; default: refuse too long ones.")
    ] = None,
    engine: Annotated[str, typer.Option(help=ENGINE)] = DEFAULT_ENGINE,
    embeddings: Annotated[
        str, typer.Option(help="private_table, or public_table: tells the tables to the data owner.")
    ] = "private_table",
    network: Annotated[
        str, typer.Option(help="Links between the parties: none, lan (0.5,1000), wan (40,100), or RTT_MS,MBIT.")
    ] = "none",
    teacher: Annotated[
        Path | None, typer.Option(help="Default: the one in the student's record, if still there.")
    ] = None,
    gelu: Annotated[str | None, typer.Option(help="Refuse a student of another form.")] = None,
    softmax: Annotated[str | None, typer.Option(help="Refuse a student of another form.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each party.")] = 1,
    device: Annotated[str, typer.Option(help="Where the parties multiply: cpu or cuda.")] = "cpu",
    port: Annotated[int, typer.Option(help="First of three fixed ports; 0: any free ones.")] = 0,
    deadline_s: Annotated[float, typer.Option(help="Longest wait of one party for another, seconds.")] = 300.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run of this --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="New folder; default: runs/TASK-TIME.")] = None,
) -> None:
    """Run a student privately: all parties on this machine, each its own process.

    Semi-honest, non-colluding parties; the dealer is trusted for randomness only. The report says what leaks.
    """
    from mpcformer.errors import UserInputError
    from parties.runs import local_run, report
    from parties.runs.network import network_profile
    from parties.runs.simulation import LocalRunOptions
    from parties.settings.job import JobDescription

    name = task or local_run.task_of(student)
    if resume and out is None:
        raise UserInputError("--resume: --out is missing", "give the folder of the run to go on with")
    job = JobDescription(
        task=name,
        split=split,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        engine=resolve(engine),
        embeddings=embeddings,
    )
    options = LocalRunOptions(
        student=student,
        teacher=teacher or local_run.teacher_of(student),
        job=job,
        data_dir=data_dir,
        network=network_profile(network),
        port=port,
        threads=threads,
        device=device,
        deadline_s=deadline_s,
    )
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    local_run.check(options, folder, gelu=gelu, softmax=softmax)
    report.show(local_run.run(options, folder, resume=resume), folder)


def party(
    config: Annotated[Path, typer.Option(help="This party's TOML file.")],
    once: Annotated[bool, typer.Option("--once", help="A service ends after one session, with its status.")] = False,
) -> None:
    """Run one party: a data owner does its job and ends, dealer and model owner serve until SIGTERM."""
    from parties.roles.start_party import run_and_exit

    run_and_exit(config, once=once)


def coordinate(
    config: Annotated[Path, typer.Option(help="The coordinator's TOML file.")],
    out: Annotated[Path | None, typer.Option(help="New folder; default: runs/TASK-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run of this --out.")] = False,
) -> None:
    """Run one job between parties that their owners started, and report it."""
    from mpcformer.errors import UserInputError
    from parties.runs import deployed_run, report
    from parties.settings.config_file import load_coordinator

    settings = load_coordinator(config)
    if resume and out is None:
        raise UserInputError("--resume: --out is missing", "give the folder of the run to go on with")
    folder = out or Path("runs") / f"{settings.job.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    report.show(deployed_run.run(settings, folder, resume=resume), folder)


certs = typer.Typer(no_args_is_help=True, help="Certificates: make an authority and all of them, or renew some.")


@certs.command("init")
def certs_init(
    party: Annotated[list[str], typer.Option(help="A party's id; give it again for each.")],
    out: Annotated[Path, typer.Option(help="New folder for all certificates and keys.")],
    days: Annotated[int, typer.Option(help="How long they are valid.")] = 30,
) -> None:
    """Make an authority and a certificate for each party, who gets authority.pem, its own .pem and its own .key."""
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


@certs.command("renew")
def certs_renew(
    certs: Annotated[Path, typer.Option(help="The folder of certs init, with authority.key.")],
    party: Annotated[list[str], typer.Option(help="A party's id; give it again for each.")],
    days: Annotated[int, typer.Option(help="How long they are valid.")] = 30,
) -> None:
    """Make a party's .pem and .key anew, from the same authority; whoever serves takes them without a restart."""
    from mpcformer.console import console
    from parties.wire.tls import renew_certificates

    validity = _checked(party, days)
    renew_certificates(certs, party, validity)
    console.print(f"{certs}: a new .pem and .key for each of {', '.join(party)}, for it alone; valid for {days} days.")


def _checked(party: list[str], days: int) -> datetime.timedelta:
    """What both commands ask for: ids that can stand in a certificate, each once, and a short life."""
    from mpcformer.errors import UserInputError

    if not 1 <= days <= 365:
        raise UserInputError(f"--days: {days} is outside 1..365", "keep it short: renewing takes a second")
    bad = [name for name in party if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name) or party.count(name) > 1]
    if bad or "authority" in party:
        raise UserInputError(
            f"--party: {(bad or ['authority'])[0]!r} is no id, or stands twice",
            "use letters, digits, - and _, 63 at most; 'authority' is taken",
        )
    return datetime.timedelta(days=days)


def export(
    student: Annotated[Path, typer.Option(help="Folder of a distilled student.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
) -> None:
    """Copy what a data owner needs of a student: configuration, ranges and tokenizer; never a weight."""
    from mpcformer.console import console
    from mpcformer.files import check_new_folder
    from mpcformer.modeling import load_student
    from parties.settings.public_files import export_public

    check_new_folder(out)
    load_student(student)
    if out.is_dir():
        out.rmdir()
    export_public(student, out)
    console.print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}. Give it to the data owner.")
