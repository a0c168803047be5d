"""The command `mpcformer demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder; finished parts in it are kept.")] = Path("runs/demo"),
    examples: Annotated[int, typer.Option(help="Unseen sentences to run privately.")] = 128,
    train_limit: Annotated[int, typer.Option(help="Training sentences, of 8,548.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Sentences that share every round.")] = 16,
) -> None:
    """All of it, on this machine: fine-tune a teacher, distil a student, run it privately."""
    from experiments.demo import DemoOptions, run

    run(DemoOptions(out=out, examples=examples, train_limit=train_limit, batch_size=batch_size))
