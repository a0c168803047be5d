"""Programs between two owners in threads: their numbers, and that they use exactly what was planned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from experiments.programs import cases
from mpcformer.channel import memory_pair
from mpcformer.engines.crypten.compat import PartyState
from mpcformer.errors import UserInputError
from mpcformer.programs import LoadedProgram, dry_run, load_program, owner, program, run_program, shared_network
from tests.pair import play

FILES = Path(__file__).parent / "files"
MEASURED = Path(cases.__file__).parent


def line_of(text: str) -> int:
    """Return the line of wrong.py with this text."""
    lines = (FILES / "wrong.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def file_of(name: str) -> Path:
    """Return the file of a program, among the measured ones or those of this folder."""
    return MEASURED / name if (MEASURED / name.partition(":")[0]).is_file() else FILES / name


def values(loaded: LoadedProgram, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs of the declared shapes, in [-2, 2)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = loaded.program.inputs.items()
    return {name: torch.rand(found.shape, generator=generator) * 4 - 2 for name, found in inputs}


def network(x: torch.Tensor, kernel: torch.Tensor, kernel_bias: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return F.linear(F.max_pool2d(torch.relu(F.conv2d(x, kernel, kernel_bias)), 2).flatten(1), *rest)


def step(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w - 0.1 * 2 / len(x) * x.t() @ (x @ w - y)


def label(x: torch.Tensor, known: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return labels[torch.cdist(x, known).argmin(1)]


# the program, who learns what, and in plaintext
CASES: list[tuple[str, dict[str, tuple[int, Callable[..., torch.Tensor]]]]] = [
    ("regression.py:linear", {"y": (1, lambda x, w, b: x @ w + b)}),
    ("regression.py:logistic", {"y": (1, lambda x, w, b: torch.sigmoid(x @ w + b))}),
    ("selection.py:compare", {"z": (0, lambda x, y: (x > y).long())}),
    ("selection.py:compare_by_keys", {"z": (0, lambda x, y: (x > y).long())}),
    ("selection.py:argmax", {"y": (1, lambda x: x.argmax(1))}),
    ("selection.py:argmax_by_keys", {"y": (1, lambda x: x.argmax(1))}),
    ("selection.py:softmax_by_keys", {"y": (1, lambda x: x.softmax(1))}),
    ("selection.py:softmax", {"y": (1, lambda x: x.softmax(1))}),
    ("selection.py:moments", {"mean": (0, lambda x: x.mean()), "variance": (0, lambda x: x.var())}),
    ("small.py:nearest", {"label": (1, label)}),
    ("small.py:scaled", {"x": (0, lambda x, y: x * torch.tensor([0.3, 3.0])), "y": (1, lambda x, y: y / 7)}),
    ("networks.py:by_hand", {"logits": (1, network)}),
    ("networks.py:by_torch", {"logits": (1, network)}),
    ("regression.py:training_step", {"w": (0, step)}),
]


@pytest.mark.parametrize(("name", "right"), CASES, ids=[case[0] for case in CASES])
def test_a_program_gives_the_right_numbers_for_what_was_planned(
    name: str, right: dict[str, tuple[int, Callable[..., torch.Tensor]]]
) -> None:
    loaded = load_program(file_of(name))
    inputs = values(loaded)
    results, plan, states = play(loaded, inputs)
    for key, (rank, plain) in right.items():
        assert float((results[rank][key].double() - plain(*inputs.values())).abs().max()) <= 0.003
        assert loaded.program.reveal[key] == "both" or key not in results[1 - rank]
    assert [state.store.next_operation for state in states] == [len(plan.requests)] * 2
    assert max(state.channel.counters.rounds for state in states) == plan.rounds
    assert tuple(state.channel.counters.bytes_sent for state in states) == plan.bytes_sent


@pytest.mark.parametrize(("name", "how"), [("regression.py:logistic", "shapes"), ("small.py:scaled", "zeros")])
def test_shapes_suffice_but_where_a_program_looks_at_values(name: str, how: str) -> None:
    loaded = load_program(file_of(name))
    plan = dry_run(loaded, on_shapes=True)
    assert plan.how == how
    assert plan.digest == dry_run(loaded, on_shapes=False).digest


@pytest.mark.parametrize(
    ("name", "message", "text"),
    [
        ("opens", "get_plain_text at {} opens", "total = x.sum()"),
        ("reveals", "reveal at {} opens", "x * x.reveal()"),
        ("decrypts", "get_plain_text at {} opens", "mode=False"),
        ("sends", "communicator.broadcast at {} opens", "broadcast(x.share"),
        ("branches", "RuntimeError at {}: Cannot evaluate", "x if x.sum() > 0"),
        ("draws", "aten::rand at {} draws from torch's generator", "torch.rand(3)"),
        ("draws_by_numpy", "draws from numpy.random's generator", ""),
        ("draws_by_python", "draws from random's generator", ""),
        ("returns_plaintext", "y of returns_plaintext is a Tensor, no shared tensor", ""),
        ("returns_another", "returns z, declared is y", ""),
        ("fails", "RuntimeError at {}: shape", "x.view(2, 2)"),
        ("differs", "the two owners would ask for different correlations", ""),
    ],
)
def test_what_a_program_may_not_do_ends_its_dry_run(name: str, message: str, text: str) -> None:
    with pytest.raises(UserInputError, match=message.format(f"wrong.py:{line_of(text)}")):
        dry_run(load_program(FILES / f"wrong.py:{name}"))


def test_comparisons_by_keys_take_one_round() -> None:
    """The results are opened in the last round of each: compare has one comparison before it."""
    names = "compare", "compare_by_keys"
    by_bits, by_keys = (dry_run(load_program(MEASURED / f"selection.py:{name}")) for name in names)
    assert (by_bits.rounds, by_keys.rounds) == (9, 2)
    assert by_keys.bytes_sent == (16_000, 16_000)
    assert by_keys.passed_on_bytes == by_keys.dealer_bytes == 1000 * 1528
    equal = dry_run(load_program(FILES / "keys.py:equal"))
    # The model owner sends its halves of the opening, and then of the result, which the data owner learns.
    assert (equal.rounds, equal.bytes_sent) == (2, (2 * 12 * 8, 12 * 8))
    assert equal.passed_on_bytes == equal.dealer_bytes == 12 * 1032
    loaded = load_program(MEASURED / "selection.py:argmax_by_keys")
    shapes = dry_run(loaded, on_shapes=True)
    assert (shapes.how, shapes.digest) == ("shapes", dry_run(loaded).digest)


@pytest.mark.parametrize("name", ["equal", "relu", "sign", "absolute", "largest", "pooled"])
def test_whatever_compares_is_right_by_keys(name: str) -> None:
    """At zero, at ties and at the ends of the range, too."""
    loaded = load_program(FILES / f"keys.py:{name}")
    x = torch.tensor([[0.0, -0.0, 1.5, -1.5], [2.0**-16, -(2.0**-16), 2.0**40, -(2.0**40)], [3.0, 3.0, -7.0, 0.25]])
    y = torch.where(x > 1, x, x - 2.0**-16)
    results, plan, _ = play(loaded, {"x": x, "y": y})
    right = {
        "equal": (x == y).long(),
        "relu": x.relu(),
        "sign": torch.where(x < 0, -1, 1),
        "absolute": x.abs(),
        "largest": x.max(1).values,
        "pooled": F.max_pool2d(x[None], 2, 1)[0],
    }[name]
    assert float((results[1]["r"].double() - right).abs().max()) <= 0.003
    assert any(request.kind in ("sign", "equality") for request in plan.requests)
    assert not any(request.kind == "binary_triple" for request in plan.requests)


@pytest.mark.parametrize("name", ["whole", "whole_by_keys"])
def test_whole_numbers_stay_whole_where_they_are_compared(name: str) -> None:
    """CrypTen gives 65536 for the equality of whole numbers; by keys it gave -1 at -2^63."""
    x, y = torch.tensor([3.0, 0.0, -5.0, 2.0**45, 7.0]), torch.tensor([3.0, -1.0, -5.0, 1.0, 2.0**40])
    results, *_ = play(load_program(FILES / f"keys.py:{name}"), {"x": x, "y": y})
    equal = (x == y).long()
    found = results[1]
    assert torch.equal(found["equal"], equal)
    assert torch.equal(found["different"], 1 - equal)
    assert torch.equal(found["alike"], ((x > 0) == (y > 0)).long())
    assert found["edge"].tolist() == [0, 1, 0, 0, 0]


def test_a_group_is_one_argument_and_whole_numbers_are_shared_as_they_are() -> None:
    loaded = load_program(FILES / "small.py:grouped")
    assert loaded.program.owners == {"layer": "model", "counts": "data"}
    counts = torch.tensor([[1, 0, 2], [0, 0, 0], [-3, 5, 7], [2**40, 0, 0]])
    weight, bias = torch.tensor([[0.5, -1.0], [0.25, 2.0], [1.5, 0.0]]), torch.tensor([1.0, -0.5])
    results, plan, _ = play(loaded, {"layer.weight": weight, "layer.bias.of.it": bias, "counts": counts})
    assert torch.equal(results[1]["y"], (counts.double() @ weight.double() + bias).float())
    assert torch.equal(results[1]["twice"], counts * 2)
    # Of whole numbers nothing is cut off.
    assert [request.kind for request in plan.requests] == ["additive_triple"]


def test_a_program_that_waits_for_ever_is_named() -> None:
    with pytest.raises(UserInputError, match=f"still at wrong.py:{line_of('time.sleep')} after 1 s"):
        dry_run(load_program(FILES / "wrong.py:waits"), limit_s=1.0)


def test_an_opening_is_refused_at_run_time_too() -> None:
    """The dry run looks at zeros: a program that only opens other values passes it."""
    loaded = load_program(FILES / "wrong.py:opens")
    state = PartyState(rank=0, channel=memory_pair(1)[0], store=None, zero_key=bytes(16))
    with pytest.raises(UserInputError, match=f"wrong.py:{line_of('total = x.sum()')} opens"):
        run_program(loaded, state, {})


def test_values_that_no_party_knows_are_drawn_by_crypten() -> None:
    loaded = load_program(FILES / "wrong.py:private_draws")
    x = values(loaded)
    first, second = (play(loaded, x)[0][1]["y"] - x["x"] for _ in range(2))
    assert not torch.equal(first, second)
    assert 0 <= float(first.min()) <= float(first.max()) < 1.001


def test_a_run_says_no_value_in_its_errors() -> None:
    loaded = load_program(FILES / "wrong.py:fails")
    state = PartyState(rank=1, channel=memory_pair(1)[0], store=None, zero_key=bytes(16))
    with pytest.raises(UserInputError) as caught:
        run_program(loaded, state, {"x": torch.tensor([1.5, 2.5, 3.5])})
    assert caught.value.what == f"program: RuntimeError at wrong.py:{line_of('x.view(2, 2)')}"


def test_declarations_that_do_not_fit_are_refused() -> None:
    x = {"x": owner("data", (2,))}
    for inputs, reveal, message in [
        ({}, {"y": "data"}, "its declaration has nothing"),
        (x | {"w": owner("model")}, {"y": "data"}, "its declaration has x, w"),
        (x, {"y": "dealer"}, "revealed to 'dealer'"),
        (x, {"not a name": "data"}, "'not a name'"),
        (x, {}, "reveals nothing"),
        ({"x": (2,)}, {"y": "data"}, "declared as"),
        ({"x": {}}, {"y": "data"}, "declared as {}"),
        ({"x": {"a": owner("data"), "b": owner("model")}}, {"y": "data"}, "the input x has two owners"),
        ({"x": owner("data"), "x.a": owner("data")}, {"y": "data"}, "two owners or two forms"),
    ]:
        with pytest.raises(UserInputError, match=message):
            program(inputs=inputs, reveal=reveal)(lambda x: {"y": x})
    with pytest.raises(UserInputError, match="comparisons are 'fast'"):
        program(inputs=x, reveal={"y": "data"}, comparisons="fast")(lambda x: {"y": x})
    for name, shape in [
        ("dealer", (2,)),
        ("data", (-1,)),
        ("data", (1 << 40,)),
        ("data", (1.5,)),
        ("data", "ab"),
        ("data", {"": ()}),
        ("data", {"a": (-1,)}),
    ]:
        with pytest.raises(UserInputError, match="owner"):
            owner(name, shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no program"),
        ("raise ValueError('why')", "cannot be imported: ValueError: why"),
        ("def", "cannot be imported: SyntaxError"),
    ],
)
def test_files_without_a_program_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.py").write_text(text)
    with pytest.raises(UserInputError, match=message):
        load_program(tmp_path / "p.py")
    with pytest.raises(UserInputError, match="there is no file"):
        load_program(tmp_path / "q.py")
    with pytest.raises(UserInputError, match="has linear, logistic"):
        load_program(MEASURED / "regression.py")


def test_a_digest_is_of_the_file_and_of_what_it_imports_beside_it(tmp_path: Path) -> None:
    text = "import mpcformer\nfrom helper_of_program import f\nx = {'x': mpcformer.owner('data')}\n"
    text += "@mpcformer.program(inputs=x, reveal={'y': 'data'})\ndef p(x):\n    return {'y': f(x)}\n"
    digests = []
    for body in ("return x", "return x + 1"):
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        (folder / "p.py").write_text(text)
        (folder / "helper_of_program.py").write_text(f"def f(x):\n    {body}\n")
        digests.append(load_program(folder / "p.py").digest)
        # Whatever was imported before in this process, the helper counts.
        assert load_program(folder / "p.py").digest == digests[-1]
    assert digests[0] != digests[1]
    package = tmp_path / "0" / "helper_of_program"
    (tmp_path / "0" / "helper_of_program.py").unlink()
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from helper_of_program.inner.part import f\n")
    for body in ("return x", "return x + 1"):
        (package / "inner" / "part.py").write_text(f"def f(x):\n    {body}\n")
        digests.append(load_program(tmp_path / "0" / "p.py").digest)
    assert len(set(digests)) == 4


def test_a_network_takes_all_its_parameters_and_no_others() -> None:
    with pytest.raises(UserInputError, match="bias has the shape None"):
        shared_network(torch.nn.Linear(2, 1), torch.zeros(1, 2), {"weight": torch.zeros(1, 2)})
