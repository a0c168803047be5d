"""Test `mpcformer bench` and `estimate` on a tiny student: the JSON's contents, and that both agree on the cost."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments import estimate, products
from experiments.bench_command import run
from experiments.measuring.engines import BenchOptions
from experiments.measuring.model import bench_model
from mpcformer.cli import build_app
from mpcformer.engines.base import load_public_model
from mpcformer.engines.stopwatch import OPERATIONS
from mpcformer.errors import UserInputError
from mpcformer.files import read_json
from parties.runs.network import PROFILES


def test_bench_and_estimate_agree(student: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    run(BenchOptions(model=str(student), seq_len=8, batch_size=2, batches=2, repeat=1, json=file))
    values = read_json(file)
    assert {"model", "layers", "seq_len", "batch_size", "engines", "ratio"} <= set(values)
    assert set(values["ratio"]) == {"online_seconds", "online_to_whole", "total_seconds"}
    costs = estimate.run(str(student), None, 8, 2, ("lift", "crypten"), PROFILES["lan"])
    for name, measured in values["engines"].items():
        cost = costs[name]
        assert measured["rounds"] == pytest.approx(cost.rounds, rel=0.1)
        for key in ("online_bytes", "dealer_bytes"):
            # The header of a frame adds about 60 bytes to a message, which matters for small messages.
            assert getattr(cost, key) <= measured[key] < 1.1 * getattr(cost, key) + 100 * 2 * cost.rounds
        assert set(measured["breakdown"]) == set(OPERATIONS)
        assert 0 < sum(measured["breakdown"].values()) <= 1.05 * measured["online_seconds"]
        assert all(size > 50e6 for size in measured["peak_rss_bytes"].values()), measured["peak_rss_bytes"]
    assert costs["lift"].network_seconds(0.04, 1e6) > costs["lift"].network_seconds(0.0, 1e6) > 0


def test_products_alone(student: Path, tmp_path: Path) -> None:
    file = tmp_path / "products.json"
    values = products.run(BenchOptions(model=str(student), seq_len=8, batch_size=2, repeat=1, json=file))
    assert read_json(file) == values
    speeds = values["gmac_per_second"]
    assert {"64 bits, torch's int64", "64 bits, limbs in float64", "32 bits, torch's int32"} <= set(speeds)
    assert all(shape.startswith("16 x ") and speed > 0 for way in speeds.values() for shape, speed in way.items())


@pytest.mark.slow
def test_what_tls_costs(student: Path, tmp_path: Path) -> None:
    file = tmp_path / "transport.json"
    options = ["--model", student, "--seq-len", 8, "--repeat", 1, "--transport", "--json", file]
    result = CliRunner().invoke(build_app(), ["bench", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "INSECURE" in result.stderr
    values = read_json(file)
    assert set(values["engines"]) == {"lift"}
    found = values["engines"]["lift"]
    assert set(found["online_seconds"]) == {"mutual TLS", "plaintext"}
    assert found["ratio"] == found["online_seconds"]["mutual TLS"] / found["online_seconds"]["plaintext"] > 0


def test_a_named_model_has_its_shape_and_ranges() -> None:
    with bench_model("minilm", 1, 8) as folder:
        public = load_public_model(folder)
    assert (public.config.num_hidden_layers, public.config.hidden_size) == (1, 384)
    assert "layer.0.row_mean" in public.ranges.bounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "bart"}, "--model: 'bart' is unknown"),
        ({"engines": ("spdz",)}, "--engine: 'spdz' is unknown"),
        ({"seq_len": 600}, "exceeds 512"),
        ({"batch_size": 0}, "--batch-size: 0"),
        ({"model": "minilm", "layers": 0}, "--layers: 0"),
        ({"json": Path(__file__)}, "exists"),
        ({"json": Path(__file__) / "figures.json"}, "is not a folder"),
        ({"threads": 0}, "--threads: 0 is below 1"),
        ({"batches": 0}, "--batches: 0 is below 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        run(BenchOptions(**options))  # type: ignore[arg-type]


def test_estimate_on_the_command_line(student: Path) -> None:
    result = CliRunner().invoke(build_app(), ["estimate", "--model", str(student), "--seq-len", "8"])
    assert result.exit_code == 0, result.output
    assert "rounds" in result.output


@pytest.mark.parametrize("other", ["--transport", "--products"])
@pytest.mark.parametrize("given", ["--batches 3", "--overlap"])
def test_batches_are_for_the_engines(other: str, given: str) -> None:
    with pytest.raises(UserInputError, match=f"{given}: {other} decides that itself"):
        CliRunner().invoke(build_app(), ["bench", *given.split(), other], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seq-len", "3"], "--seq-len: 3 is below 4"),
        (["--seq-len", "4096"], "--seq-len: 4096 exceeds 512 positions"),
        (["--engine", "spdz"], "--engine: 'spdz' is unknown"),
        (["--gelu", "relu", "--model", "STUDENT"], "--gelu relu: a form is part of the student"),
        (["--constant-norms", "all", "--model", "STUDENT"], "--constant-norms all: a form is part"),
        (["--strides", "1,2", "--model", "STUDENT"], "--strides 1,2: a form is part"),
        (["--strides", "1,2"], "strides: 2 numbers for a model of 12 layers"),
        (["--strides", "1,two"], "--strides: '1,two' is no list of integers"),
        (["--seq-len", "500", "--model", "STUDENT"], r"--seq-len: 500 exceeds \d\d positions"),
    ],
)
def test_estimate_refuses_what_cannot_be_counted(student: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        CliRunner().invoke(
            build_app(),
            ["estimate", *(str(student) if word == "STUDENT" else word for word in options)],
            catch_exceptions=False,
        )
