"""The command `mpcformer infer`."""

import time
from pathlib import Path
from typing import Annotated

import typer


def infer(
    student: Annotated[Path, typer.Option(help="Folder of a distilled student.")],
    task: Annotated[str | None, typer.Option(help="Default: the task it was distilled for.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of parquet files; default: hub, or PyPI (demo task).")
    ] = None,
    split: Annotated[str, typer.Option(help="'eval' is the split that is reported.")] = "eval",
    limit: Annotated[int | None, typer.Option(help="Examples, drawn by hash; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sentences that share every round.")] = 16,
    max_length: Annotated[
        int | None, typer.Option(help="Cut texts to so many tokens; default: refuse too long ones.")
    ] = None,
    engine: Annotated[str, typer.Option(help="mpcformer, or crypten, the reference.")] = "mpcformer",
    embeddings: Annotated[
        str, typer.Option(help="private_table, or public_table: tells the tables to the data owner.")
    ] = "private_table",
    network: Annotated[str, typer.Option(help="Links between the parties: none, lan, wan, or RTT_MS,MBIT.")] = "none",
    teacher: Annotated[
        Path | None, typer.Option(help="Default: the one in the student's record, if still there.")
    ] = None,
    gelu: Annotated[str | None, typer.Option(help="Assert the student's form.")] = None,
    softmax: Annotated[str | None, typer.Option(help="Assert the student's form.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each party.")] = 1,
    device: Annotated[str, typer.Option(help="Where the parties multiply: cpu or cuda.")] = "cpu",
    port: Annotated[int, typer.Option(help="First of three fixed ports; 0: any free ones.")] = 0,
    deadline_s: Annotated[float, typer.Option(help="Longest wait of one party for another, seconds.")] = 300.0,
    out: Annotated[Path | None, typer.Option(help="New folder; default: runs/TASK-TIME.")] = None,
) -> None:
    """Run a student privately: all parties on this machine, each its own process.

    Semi-honest, non-colluding parties; the dealer is trusted for randomness only. The report says what leaks.
    """
    from parties import evaluate, report
    from parties.network import network_profile
    from parties.simulation import InferenceJob

    name = task or evaluate.task_of(student)
    job = InferenceJob(
        student=student,
        teacher=teacher or evaluate.teacher_of(student),
        task=name,
        data_dir=data_dir,
        split=split,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        engine=engine,
        embeddings=embeddings,
        network=network_profile(network),
        port=port,
        threads=threads,
        device=device,
        deadline_s=deadline_s,
    )
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    evaluate.check(job, folder, gelu=gelu, softmax=softmax)
    report.show(evaluate.run(job, folder), folder)
