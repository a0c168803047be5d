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
from mpcformer.ring.short import LEVELS

STUDENT = {"model_type": "mpcformer"}
SHORT_BITS = 8


def ways(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Return by name the products of ring elements that this machine can compute, for factors (m, n) and (n, p)."""
    compiled, _ = kernels.load()
    narrow, short = y.to(torch.int32), (y & ((1 << SHORT_BITS) - 1)).to(torch.int16)
    found: dict[str, Callable[[], torch.Tensor]] = {}
    if compiled is not None:
        name, short_name = compiled.name, LEVELS[compiled.short.level]
        found = {
            f"64 bits, {name}": lambda: compiled.matmul(x, y, 64),
            f"52 bits, {name}": lambda: compiled.matmul(x, y, kernels.IFMA_BITS),
            f"32 bits, {name}": lambda: compiled.matmul(x, narrow, 32),
            f"48 bits by short weights, {short_name}": lambda: compiled.matmul_short(x, short, 48),
            f"32 bits by short weights, {short_name}": lambda: compiled.matmul_short(x, short, 32),
        }
    return found | {
        "64 bits, torch's int64": lambda: torch.matmul(x, y),
        "64 bits, limbs in float64": lambda: gemm.limb_matmul(x, y),
        "32 bits, torch's int32": lambda: gemm.matmul_by_torch(x, y, 32),
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
            for name, product in ways(x, y).items():
                seconds = min(_seconds(product) for _ in range(options.repeat))
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


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    product()
    return time.perf_counter() - start
