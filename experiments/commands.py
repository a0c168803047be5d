"""The commands `mpcformer demo`, `bench`, `estimate` and `replay`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.spec import SCALES
from experiments.spec.shapes import SHAPES
from mpcformer import options
from mpcformer.engines.registry import DEFAULT_ENGINE, engine_names
from mpcformer.errors import UserInputError
from mpcformer.modeling.precision import PRECISIONS
from mpcformer.options import INPUT, MACHINE, OUTPUT, PRIVACY, choice, flag, option
from parties.commands import Device, Network, Threads
from parties.runs.cluster import POOLS

SHIPPED = sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def _known_model(given: str) -> str:
    """Return the value of --model.

    Raises:
        UserInputError: it is neither a named shape nor a folder.
    """
    if given not in SHAPES and not Path(given).is_dir():
        raise UserInputError(f"--model: {given!r} is unknown", f"give a folder, or one of: {', '.join(SHAPES)}")
    return given


Model = Annotated[
    str,
    choice(
        "--model", lambda: SHAPES, group=INPUT, about="{}, all with random weights; or a folder.", check=_known_model
    ),
]
Layers = Annotated[int | None, option(group=INPUT, about="Encoder layers of a named model; default: all.")]
SeqLen = Annotated[int, option(group=INPUT, about="Tokens in a sentence.")]
BatchSize = Annotated[int, option(group=INPUT, about="Sentences in the batch.")]
Gelu = Annotated[str | None, options.gelu(INPUT, "Form in a named model; default: quad. One of {}.")]
Softmax = Annotated[str | None, options.softmax(INPUT, "Form in a named model; default: 2quad. One of {}.")]
Strides = Annotated[
    str | None, option(group=INPUT, about="Of how many positions each layer of a named model keeps one: 1,4,1.")
]
Precision = Annotated[
    str | None,
    choice(
        "--precision",
        lambda: PRECISIONS,
        group=INPUT,
        about="Of a named model: one of {}; default: compact where it carries the forms.",
    ),
]
Engines = Annotated[list[str] | None, options.engine("One of {}; give the option again for another. Default: all.")]


def demo(
    examples: Annotated[int, option(group=INPUT, about="Unseen sentences to run privately.")] = 128,
    train_limit: Annotated[int, option(group=INPUT, about="Training sentences to use, of 8,548.")] = 4000,
    batch_size: Annotated[int, option(group=MACHINE, about="Sentences that share every round.")] = 16,
    out: Annotated[Path, option(group=OUTPUT, about="Folder; finished parts in it are kept.")] = Path("runs/demo"),
) -> None:
    """Make a teacher and a student on this machine, and run the student privately.

    Example: mpcformer demo --train-limit 1000 --examples 32
    """
    from distill.training.processes import refuse_launcher
    from experiments.demo import DemoOptions, run

    refuse_launcher("demo")
    run(DemoOptions(out=out, examples=examples, train_limit=train_limit, batch_size=batch_size))


def bench(
    model: Model = "bert-base",
    layers: Layers = None,
    seq_len: SeqLen = 128,
    batch_size: BatchSize = 1,
    gelu: Gelu = None,
    softmax: Softmax = None,
    strides: Strides = None,
    precision: Precision = None,
    engine: Engines = None,
    transport: Annotated[
        bool, flag("--transport", group=PRIVACY, about="Compare mutual TLS with plaintext instead of the engines.")
    ] = False,
    network: Network = "none",
    threads: Threads = 1,
    device: Device = "cpu",
    products: Annotated[
        bool, flag("--products", group=MACHINE, about="Measure matrix products alone, in each way that is here.")
    ] = False,
    batches: Annotated[int, option(group=MACHINE, about="Batches in a run; each is dealt beside another.")] = 1,
    overlap: Annotated[
        bool, flag("--overlap", group=MACHINE, about="Compute a batch while it is dealt; by default, after that.")
    ] = False,
    repeat: Annotated[int, option(group=MACHINE, about="Runs of each engine, in turns.")] = 2,
    json: Annotated[Path | None, option(group=OUTPUT, about="Write the figures to this new file.")] = None,
) -> None:
    """Measure the engines against each other: seconds, bytes, rounds and memory.

    Example: mpcformer bench --model bert-base --layers 2 --network lan --json bench.json
    """
    from experiments import products as products_alone
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
        **_forms(model, gelu=gelu, softmax=softmax, strides=strides, precision=precision),
        batches=batches,
        overlap=overlap,
        repeat=repeat,
        threads=threads,
        device=device,
        json=json,
    )
    if transport and products:
        raise UserInputError("--transport and --products measure different things", "give one of them")
    if (batches != 1 or overlap) and (transport or products):
        other, given = "--transport" if transport else "--products", "--overlap" if overlap else f"--batches {batches}"
        raise UserInputError(f"{given}: {other} decides that itself", f"leave {given.split()[0]} out")
    (products_alone.run if products else transports.run if transport else run)(options)


def estimate(
    model: Model = "bert-base",
    layers: Layers = None,
    seq_len: SeqLen = 128,
    batch_size: BatchSize = 1,
    gelu: Gelu = None,
    softmax: Softmax = None,
    constant_norms: Annotated[
        str | None, option(group=INPUT, about="LayerNorms with a constant, in a named model: attention, output or all.")
    ] = None,
    strides: Strides = None,
    precision: Precision = None,
    engine: Engines = None,
    network: Network = "lan",
) -> None:
    """Count a private batch's rounds, bytes and network time, without running it.

    Example: mpcformer estimate --model bert-large --batch-size 8 --network wan
    """
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
        **_forms(
            model, gelu=gelu, softmax=softmax, constant_norms=constant_norms, strides=strides, precision=precision
        ),
    )


def _engines(given: list[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the engines that were asked for."""
    return tuple(given) if given else default


def _forms(model: str, **given: str | None) -> dict[str, Any]:
    """Return the forms that were given. They are for a named model; a folder's student has its own.

    Raises:
        UserInputError: a form is given for a folder.
    """
    forms = {name: value for name, value in given.items() if value is not None}
    if forms and model not in SHAPES:
        name = next(iter(forms))
        raise UserInputError(
            f"--{name.replace('_', '-')} {forms[name]}: a form is part of the student, and {model} has its own",
            f"leave it out, or give --model one of: {', '.join(SHAPES)}",
        )
    return forms


def replay(
    experiment: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(SHIPPED)}; or a TOML file.",
            autocompletion=lambda incomplete: [name for name in SHIPPED if name.startswith(incomplete)],
        ),
    ],
    scale: Annotated[
        str,
        choice("--scale", lambda: SCALES, group=INPUT, about="{}: a minute on made-up data, MiniLM, or BERT-base."),
    ] = "smoke",
    data_dir: Annotated[
        Path | None, options.folder("--data-dir", group=INPUT, about="Folder of parquet files; default: download.")
    ] = None,
    check: Annotated[
        Path | None, options.file("--check", group=INPUT, about="Recorded results.json to compare the results with.")
    ] = None,
    keep: Annotated[
        Path | None,
        options.file("--keep", group=INPUT, about="Recorded results.json; its rows of the same models are not redone."),
    ] = None,
    jobs: Annotated[int, option(group=MACHINE, about="Trainings at a time, each in its own process.")] = 1,
    pool: Annotated[
        str,
        choice("--pool", lambda: POOLS, group=MACHINE, about="Where they run: {}, a cluster that shares the folders."),
    ] = "local",
    ray_address: Annotated[
        str | None, option(group=MACHINE, about="The cluster; default: RAY_ADDRESS, else this machine.")
    ] = None,
    models: Annotated[Path, option(group=OUTPUT, about="Where trained models are kept and found again.")] = Path(
        "runs/models"
    ),
    out: Annotated[Path | None, option(group=OUTPUT, about="Folder; default: runs/replay/NAME-SCALE.")] = None,
    record: Annotated[Path | None, option(group=OUTPUT, about="Copy results.json to this folder of records.")] = None,
) -> None:
    """Do an experiment again, from training to tables, and compare it with a record.

    Example: mpcformer replay glue --scale cpu --data-dir data
    """
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
