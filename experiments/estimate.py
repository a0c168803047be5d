"""The command `mpcformer estimate` counts a private batch's rounds, bytes and network time without running it."""

from experiments.measuring.model import bench_model, check_engines, check_shape
from mpcformer.console import PlainTable, console
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.cost import Cost
from mpcformer.engines.registry import estimate_batch
from mpcformer.modeling.description import split_norms, split_strides
from parties.runs.network import NetworkProfile


def run(
    model: str,
    layers: int | None,
    seq_len: int,
    batch_size: int,
    engines: tuple[str, ...],
    network: NetworkProfile | None,
    *,
    gelu: str = "quad",
    softmax: str = "2quad",
    constant_norms: str = "",
    strides: str = "",
    precision: str | None = None,
) -> dict[str, Cost]:
    """Count the rounds and bytes of a batch for each engine, show them as a table, and return them by engine.

    Args:
        model: a student's folder, or the name of a shape.
        layers: the number of encoder layers of a named shape; None: all of them.
        seq_len: the number of tokens in a sentence.
        batch_size: the number of sentences.
        engines: the names of the engines.
        network: the link whose transfer time is added to the table; None: no time is shown.
        gelu, softmax, constant_norms, strides, precision: the forms and the precision of a named shape.

    Raises:
        UserInputError: an option is wrong.
    """
    check_shape(model, seq_len, batch_size)
    check_engines(engines)
    forms = gelu, softmax, split_norms(constant_norms), split_strides(strides), precision
    with bench_model(model, layers, seq_len, *forms) as student:
        public = load_public_model(student)
        costs = {engine: estimate_batch(engine, public, BatchShape(batch_size, seq_len)) for engine in engines}
    config = public.config
    title = f"{model}: {config.num_hidden_layers} layers, {config.gelu} + {config.softmax}, {config.precision}, "
    title += f"{len(config.constant_norms)} constant LayerNorms, " if config.constant_norms else ""
    title += f"strides {', '.join(map(str, config.strides))}, " if config.strides else ""
    title += f"{batch_size} x {seq_len} tokens; counted, not run"
    grid = PlainTable(title, "quantity", *engines)
    grid.add_row("rounds", *(str(cost.rounds) for cost in costs.values()))
    for name in (
        "online_bytes",
        "offline_bytes_to_model_owner",
        "offline_bytes_to_data_owner",
        "dealer_bytes",
        "setup_bytes",
    ):
        grid.add_row(
            f"{name.replace('_', ' ')} [MiB]", *(f"{getattr(cost, name) / 2**20:.2f}" for cost in costs.values())
        )
    if network is not None:
        seconds = [cost.network_seconds(network.rtt_s, network.bytes_s) for cost in costs.values()]
        title = f"online on the wire at {network.rtt_s * 1e3:g} ms, {network.bytes_s * 8 / 1e6:g} Mbit/s [s]"
        grid.add_row(title, *(f"{value:.2f}" for value in seconds))
    console.print(grid)
    console.print("Computing time comes on top: measure it with `mpcformer bench`.")
    return costs
