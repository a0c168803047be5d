"""Measure the products of rings on this processor: compiled, and by torch in each of its ways."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.measuring.engines import BenchOptions, check
from experiments.spec.shapes import SHAPES
from mpcformer.console import PlainTable, console
from mpcformer.engines.lift.weights import weight_shapes
from mpcformer.files import write_json
from mpcformer.modeling.description import described
from mpcformer.modeling.folder import read_config
from mpcformer.ring import gemm, kernels
from mpcformer.ring.random import Stream, fresh_key

STUDENT = {"model_type": "mpcformer"}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ways() -> dict[str, Product]:
    """Return the products that this machine can compute, by name."""
    compiled, _ = kernels.load()
    found: dict[str, Product] = {}
    if compiled is not None:
        found |= {
            f"64 bits, {compiled.name}": lambda x, y: compiled.matmul(x, y, 64),
            f"32 bits, {compiled.name}": lambda x, y: compiled.matmul(x, y, 32),
        }
    return found | {
        "64 bits, torch's int64": torch.matmul,
        "64 bits, limbs in float64": gemm.limb_matmul,
        "32 bits, torch's int32": lambda x, y: gemm.matmul_by_torch(x, y, 32),
    }


def run(options: BenchOptions) -> dict[str, Any]:
    """Measure, show the table, and write the JSON if `options.json` is set.

    Raises:
        UserInputError: an option is wrong; nothing has run then.
    """
    check(options)
    folder = Path(options.model)
    config = described(STUDENT | SHAPES[options.model] if options.model in SHAPES else read_config(folder))
    rows = options.seq_len * options.batch_size
    layer = {shape for name, shape in weight_shapes(config).items() if name.startswith("layer.0.") and len(shape) == 2}
    stream, before = Stream(fresh_key()), torch.get_num_threads()
    torch.set_num_threads(options.threads)
    speeds: dict[str, dict[str, float]] = {}
    try:
        for n, p in sorted(layer):
            x, y = stream.int64((rows, n)), stream.int64((n, p))
            for name, product in ways().items():
                seconds = min(_seconds(product, x, y) for _ in range(options.repeat))
                speeds.setdefault(name, {})[f"{rows} x {n} x {p}"] = rows * n * p / seconds / 1e9
    finally:
        torch.set_num_threads(before)
    values = {"model": options.model, "threads": options.threads, "repeat": options.repeat, "gmac_per_second": speeds}
    shapes = list(next(iter(speeds.values())))
    table = PlainTable(f"GMAC/s of {options.threads} thread(s), the best of {options.repeat}", "product", *shapes)
    for name, speed in speeds.items():
        table.add_row(name, *(f"{speed[shape]:.2f}" for shape in shapes))
    console.print(table)
    if options.json:
        write_json(options.json, values)
    return values


def _seconds(product: Product, x: torch.Tensor, y: torch.Tensor) -> float:
    start = time.perf_counter()
    product(x, y)
    return time.perf_counter() - start
