"""What programs use of CrypTen besides the reference engine's operations: each against its plaintext twin."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.channel import memory_pair
from mpcformer.correlations import Request, validate
from mpcformer.engines.crypten import compat as compat
from mpcformer.errors import ProtocolError, UserInputError
from tests.pair import integers, run_pair

crypten = compat.crypten
M = crypten.cryptensor
beaver = crypten.mpc.primitives.beaver
Arithmetic = crypten.mpc.primitives.ArithmeticSharedTensor
X, Y = torch.linspace(-2.0, 3.0, 40).view(2, 4, 5), torch.linspace(1.0, -1.0, 24).view(3, 4, 2)
V, W = torch.linspace(-1.0, 2.0, 5), torch.linspace(2.0, -2.0, 5)

CASES: list[tuple[str, Callable[[Any, Any], Any], tuple[torch.Tensor, torch.Tensor]]] = [
    ("conv1d", lambda x, y: x.conv1d(y, padding=1), (X, Y)),
    ("conv_transpose1d", lambda x, y: x.conv_transpose1d(y, stride=2), (X, Y.transpose(0, 1).contiguous())),
    ("conv2d", lambda x, y: x.conv2d(y, stride=(1, 2)), (X.unsqueeze(1), Y.view(3, 1, 4, 2))),
    ("vector by vector", lambda x, y: x.matmul(y), (V, W)),
    ("vector by matrix", lambda x, y: x.matmul(y), (V, X[0].t().contiguous())),
    ("matrices by vector", lambda x, y: x.matmul(y), (X, V)),
    ("empty product", lambda x, y: x.mul(y), (torch.zeros(0, 3), torch.zeros(0, 3))),
    ("product over nothing", lambda x, y: x.matmul(y), (torch.zeros(2, 0), torch.zeros(0, 3))),
    ("division", lambda x, y: x.div(y), (V, W.abs() + 1)),
]


def twin(op: Callable[[Any, Any], Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the plaintext result: torch has convolutions as functions."""

    class Plain:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

        def __getattr__(self, name: str) -> Callable[..., torch.Tensor]:
            return lambda other, **options: getattr(torch, name)(self.value, other, **options)

    return op(Plain(x), y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("what", "op", "operands"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("is_shared", [True, False])
def test_equals_torch(
    what: str, op: Callable[[Any, Any], Any], operands: tuple[torch.Tensor, torch.Tensor], is_shared: bool
) -> None:
    x, y = operands
    results = run_pair(lambda rank: op(M(x, src=1), M(y, src=0) if is_shared else y).get_plain_text())[0]
    expected = twin(op, x, y)
    assert results[0].shape == expected.shape
    assert not expected.numel() or float((results[0] - expected).abs().max()) < 1e-3


def test_wraps_are_exact() -> None:
    """CrypTen's own are wrong with a probability of |x| / 2^64, here 1/8."""
    values = integers(400, bits=62)

    def run(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = Arithmetic(values, precision=0)
        return x.share, beaver.wraps(x).get_plain_text()

    (first, found), (second, _) = run_pair(run)[0]
    exact = [(a + b - v) >> 64 for a, b, v in zip(first.tolist(), second.tolist(), values.tolist(), strict=True)]
    assert found.tolist() == exact


def test_in_place_operations_are_seen_by_views() -> None:
    def run(rank: int) -> list[list[float]]:
        x = Arithmetic(torch.tensor([2.0, 4.0, 6.0]))
        part = Arithmetic.from_shares(x.share[1:])
        for change in (lambda: part.div_(3), lambda: part.mul_(0.75), lambda: part.add_(1.5), lambda: part.square_()):
            change()
        return [x.get_plain_text().tolist(), part.get_plain_text().tolist()]

    whole, part = run_pair(run)[0][0]
    assert whole == pytest.approx([2.0, 6.25, 9.0], abs=1e-3)
    assert part == whole[1:]


def test_random_values_come_from_the_partys_streams() -> None:
    state = torch.get_rng_state()

    def run(rank: int) -> list[torch.Tensor]:
        with crypten.enable_grad():
            x = M(torch.ones(2000), requires_grad=True)
            dropped = x.dropout(0.25)
        return [crypten.rand(2000).get_plain_text(), dropped.get_plain_text()]

    (uniform, dropped), (_, other) = run_pair(run)[0]
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.05
    assert torch.equal(dropped, other)
    assert abs(float((dropped == 0).float().mean()) - 0.25) < 0.06
    assert dropped[dropped != 0].tolist() == pytest.approx([4 / 3] * int((dropped != 0).sum()), abs=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_shares_are_saved_and_loaded_without_pickles(tmp_path: Path) -> None:
    def run(rank: int) -> list[Any]:
        x, path = M(torch.tensor([1.5, -2.0])), tmp_path / f"{rank}.share"
        crypten.save({"x": x, "bits": x > 0, "plain": torch.tensor([3])}, path)
        raw = path.read_bytes()
        found = crypten.load(io.BytesIO(raw))
        sizes = [crypten.load_from_party(preloaded=torch.zeros(rank + 1), src=src).size() for src in (0, 1)]
        return [*(found[name].get_plain_text().tolist() for name in ("x", "bits")), found["plain"].tolist(), sizes, raw]

    for x, bits, plain, sizes, raw in run_pair(run)[0]:
        assert (x, bits, plain, sizes) == ([1.5, -2.0], [1, 0], [3], [(1,), (2,)])
        assert b"pickle" not in raw
        assert raw[8:9] == b"{", "a safetensors header"
    with pytest.raises(UserInputError, match="was not saved by"):
        crypten.load(io.BytesIO(b"\x80\x04."))
    with pytest.raises(ProtocolError, match="are not saved"):
        run_pair(lambda rank: crypten.save(torch.nn.Linear(2, 2), io.BytesIO()), channels=memory_pair(2))


@pytest.mark.parametrize(
    ("shapes", "op", "params", "message"),
    [
        (((2, 3, 9), (4, 2, 3)), "conv1d", (1, 0, 1, 0, 1), "not defined"),
        (((2, 3, 9), (4, 3, 3)), "conv1d", (1, 0, 1), "takes 5 whole numbers"),
        (((1, 1, 9000, 9000), (1, 1, 300, 300)), "conv2d", (1, 1, 0, 0, 1, 1, 0, 0, 1), "windows exceed"),
        (((1, 1, 10_000), (1, 1, 2)), "conv_transpose1d", (60_000, 0, 60_000, 0, 1), "exceed"),
    ],
)
def test_a_strangers_convolution_is_refused(shapes: Any, op: str, params: tuple[float, ...], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        validate(Request("additive_triple", shapes, op=op, params=params))
