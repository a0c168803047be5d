"""The commands `mpcformer demo`, `bench`, `estimate` and `replay`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mpcformer.engines.registry import DEFAULT_ENGINE, engine_names, resolve

SHIPPED = ", ".join(sorted(path.stem for path in Path(__file__).parent.glob("*.toml")))
ENGINE = f"{' or '.join(engine_names())}; give it again for another; default: all."
LAYERS = "Encoder layers of a named model; default: all."
GELU = "Form of a named model: quad (the default), relu or gelu."
SOFTMAX = "Form of a named model: 2quad (the default), 2quad-const, 2relu or softmax."
CONSTANT_NORMS = "LayerNorms of a named model with a learnt constant: attention, output, all, or names."
NETWORK = "Links between the parties: none, lan (0.5,1000), wan (40,100), or RTT_MS,MBIT."


def demo(
    out: Annotated[Path, typer.Option(help="Folder; finished parts in it are kept.")] = Path("runs/demo"),
    examples: Annotated[int, typer.Option(help="Unseen sentences to run privately.")] = 128,
    train_limit: Annotated[int, typer.Option(help="Training sentences, of 8,548.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Sentences that share every round.")] = 16,
) -> None:
    """All of it, on this machine: fine-tune a teacher, distil a student, run it privately."""
    from distill.training.processes import refuse_launcher
    from experiments.demo import DemoOptions, run

    refuse_launcher("demo")
    run(DemoOptions(out=out, examples=examples, train_limit=train_limit, batch_size=batch_size))


def bench(
    model: Annotated[
        str, typer.Option(help="bert-base, bert-large, minilm (random weights) or a folder.")
    ] = "bert-base",
    layers: Annotated[int | None, typer.Option(help=LAYERS)] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens a sentence.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Sentences.")] = 1,
    engine: Annotated[list[str] | None, typer.Option(help=ENGINE)] = None,
    repeat: Annotated[int, typer.Option(help="Turns; the engines alternate.")] = 2,
    gelu: Annotated[str | None, typer.Option(help=GELU)] = None,
    softmax: Annotated[str | None, typer.Option(help=SOFTMAX)] = None,
    network: Annotated[str, typer.Option(help=NETWORK)] = "none",
    threads: Annotated[int, typer.Option(help="CPU threads of each party.")] = 1,
    device: Annotated[str, typer.Option(help="Where the parties multiply: cpu or cuda.")] = "cpu",
    transport: Annotated[
        bool,
        typer.Option(
            "--transport",
            help="Compare mutual TLS with plaintext, not engines; the default engine only, unless --engine is given.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this new file.")] = None,
) -> None:
    """Measure engines against each other: seconds, bytes, rounds, memory."""
    from experiments import transport as transports
    from experiments.bench_command import run
    from experiments.measuring.engines import BenchOptions
    from parties.runs.network import network_profile

    options = BenchOptions(
        model=model,
        layers=layers,
        seq_len=seq_len,
        batch_size=batch_size,
        engines=_engines(engine, (DEFAULT_ENGINE,) if transport else engine_names()),
        network=network_profile(network),
        **_forms(model, gelu=gelu, softmax=softmax),
        repeat=repeat,
        threads=threads,
        device=device,
        json=json,
    )
    (transports.run if transport else run)(options)


def estimate(
    model: Annotated[
        str, typer.Option(help="bert-base, bert-large, minilm (random weights) or a folder.")
    ] = "bert-base",
    layers: Annotated[int | None, typer.Option(help=LAYERS)] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens a sentence.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Sentences.")] = 1,
    engine: Annotated[list[str] | None, typer.Option(help=ENGINE)] = None,
    gelu: Annotated[str | None, typer.Option(help=GELU)] = None,
    softmax: Annotated[str | None, typer.Option(help=SOFTMAX)] = None,
    constant_norms: Annotated[str | None, typer.Option(help=CONSTANT_NORMS)] = None,
    network: Annotated[str, typer.Option(help=NETWORK)] = "lan",
) -> None:
    """Count rounds and bytes of a private batch, and its time on a network, without running it."""
    from experiments.estimate import run
    from parties.runs.network import network_profile

    links = network_profile(network)
    run(
        model,
        layers,
        seq_len,
        batch_size,
        _engines(engine, engine_names()),
        links,
        **_forms(model, gelu=gelu, softmax=softmax, constant_norms=constant_norms),
    )


def _engines(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the engines that were asked for, each by its present name."""
    return tuple(resolve(name) for name in given) if given else default


def _forms(model: str, **given: str | None) -> dict[str, Any]:
    """The forms that were given, of a named model: a folder's student has its own."""
    from experiments.spec.shapes import SHAPES
    from mpcformer.errors import UserInputError

    forms = {name: value for name, value in given.items() if value is not None}
    if forms and model not in SHAPES:
        name = next(iter(forms))
        raise UserInputError(
            f"--{name.replace('_', '-')} {forms[name]}: a form is part of the student, and {model} has its own",
            f"leave it out, or give --model one of: {', '.join(SHAPES)}",
        )
    return forms


def replay(
    experiment: Annotated[str, typer.Argument(help=f"One of {SHIPPED}; or a TOML.")],
    scale: Annotated[
        str, typer.Option(help="smoke (a minute, made-up data), cpu (MiniLM) or full (BERT-base; wants a GPU).")
    ] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/replay/NAME-SCALE.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of parquet files; default: the hub.")] = None,
    models: Annotated[Path, typer.Option(help="Where trained models are kept and found again.")] = Path("runs/models"),
    jobs: Annotated[int, typer.Option(help="Trainings at a time, each its own process.")] = 1,
    pool: Annotated[
        str,
        typer.Option(
            help="Where they run: local, or ray: machines that see --models, --out, --data-dir as this one does."
        ),
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS, else this machine alone.")
    ] = None,
    check: Annotated[Path | None, typer.Option(help="Recorded results.json to compare with.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Recorded results.json, whose rows of the same models, measured alike, are kept."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Folder of records; results.json is copied there as NAME-SCALE.json.")
    ] = None,
) -> None:
    """Do an experiment again: train what is missing, infer privately, tabulate, draw, compare with a record."""
    from distill.training.processes import refuse_launcher
    from experiments.replay import ReplayOptions, run

    refuse_launcher("replay")
    run(
        ReplayOptions(
            experiment=experiment,
            scale=scale,
            out=out,
            data_dir=data_dir,
            models=models,
            jobs=jobs,
            pool=pool,
            ray_address=ray_address,
            check=check,
            keep=keep,
            record=record,
        )
    )
