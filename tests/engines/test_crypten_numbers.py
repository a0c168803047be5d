"""Numbers that CrypTen, or an earlier release, computed wrongly without a word: each is an instance of a kind."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mpcformer.engines.crypten import compat as compat
from mpcformer.errors import RangeError
from tests.pair import run_pair

crypten = compat.crypten
M = crypten.cryptensor
Arithmetic, Binary = crypten.mpc.primitives.ArithmeticSharedTensor, crypten.mpc.primitives.BinarySharedTensor


def T(*values: float) -> torch.Tensor:  # noqa: N802
    return torch.tensor(values)


def full(n: int, value: float) -> Any:
    return M(torch.full((n,), value))


def opened(make: Callable[[], Any]) -> torch.Tensor:
    """Return what `make` gives, opened; both parties get the same."""
    (left, right), _, _ = run_pair(lambda rank: make().get_plain_text())
    assert torch.equal(left, right)
    result: torch.Tensor = left
    return result


# what, private, right, largest error
FACTORS: list[tuple[str, Callable[[], Any], float, float]] = [
    ("mean of 1,000 times 50", lambda: full(1000, 50.0).mean(), 50, 1e-3),
    ("mean of 3,000 times 50", lambda: full(3000, 50.0).mean(), 50, 1e-3),
    ("mean of 50,000 ones", lambda: full(50_000, 1.0).mean(), 1, 1e-4),
    ("mean of 100,000 ones", lambda: full(100_000, 1.0).mean(), 1, 1e-4),
    ("mean of 200,000 ones", lambda: full(200_000, 1.0).mean(), 1, 1e-4),
    ("mean of 20,000 times 1e6", lambda: full(20_000, 1e6).mean(), 1e6, 1e-2),
    ("200,000 / 3,000", lambda: M(T(200_000.0)) / 3000, 200 / 3, 1e-4),
    ("1e6 / 150,000", lambda: M(T(1e6)) / 150_000, 20 / 3, 1e-4),
    ("1e6 / 100,000.5", lambda: M(T(1e6)) / 100_000.5, 1e6 / 100_000.5, 1e-4),
    ("1e6 / 3", lambda: M(T(1e6)) / 3, 1e6 / 3, 0.05),
    ("2^44 / 3", lambda: M(T(2.0**44)) / 3, 2.0**44 / 3, 2.0**22),
    ("-2^44 / 3", lambda: M(T(-(2.0**44))) / 3, -(2.0**44) / 3, 2.0**22),
    ("2^45 / 2^3", lambda: M(T(2.0**45)) / 8, 2.0**42, 1.0),
    ("2^40 / 2^62", lambda: M(T(2.0**40)) / 2**62, 0, 1e-4),
    ("5 / -2", lambda: M(T(5.0)) / -2, -2.5, 1e-4),
    ("1e6 times 0.00001", lambda: M(T(1e6)) * 0.00001, 10, 1e-4),
    ("70,000 times 20,000.0", lambda: M(T(70_000.0)) * 20_000.0, 1.4e9, 1),
    ("3 times 123456.789", lambda: M(T(3.0)) * 123456.789, 370370.367, 0.05),
    ("variance of 3,000 of +-10", lambda: M(T(10.0, -10.0).repeat(1500)).var(), 300_000 / 2999, 1e-3),
    ("mean square of 5,000 twos", lambda: full(5000, 2.0).square().mean(), 4, 1e-3),
    ("average pool of 56 x 56", lambda: M(torch.full((1, 1, 56, 56), 30.0)).avg_pool2d(56), 30, 1e-3),
    ("a public matrix of 1/3000", lambda: full(3000, 50.0).matmul(torch.full((3000, 1), 1 / 3000)), 50, 1e-2),
    ("a public matrix of 1e-6", lambda: M(torch.full((2, 3), 1e5)).matmul(torch.full((3, 1), 1e-6)), 0.3, 1e-3),
    ("a public kernel of 1e-5", lambda: M(torch.full((1, 1, 4), 1e5)).conv1d(torch.full((1, 1, 2), 1e-5)), 2, 1e-3),
    ("division by a tensor", lambda: M(T(1e6, 1e6)) / torch.tensor([150_000, 150_000]), 20 / 3, 1e-4),
]


@pytest.mark.parametrize(("what", "private", "right", "error"), FACTORS, ids=[case[0] for case in FACTORS])
def test_public_factors_keep_a_scale_of_their_own(
    what: str, private: Callable[[], Any], right: float, error: float
) -> None:
    assert float((opened(private).double() - right).abs().max()) <= error


FRACTIONS: list[tuple[str, Callable[[], Any], list[float]]] = [
    ("mean of bits", lambda: (M(T(1.0, 2.0, 3.0, -1.0)) > 0).mean(), [0.75]),
    ("bits / 3", lambda: (M(T(1.0, -1.0)) > 0) / 3, [1 / 3, 0]),
    ("bits * 0.5", lambda: (M(T(1.0, -1.0)) > 0) * 0.5, [0.5, 0]),
    ("bits + 0.5", lambda: (M(T(1.0, -1.0)) > 0) + 0.5, [1.5, 0.5]),
    ("bits - tensor", lambda: (M(T(1.0, -1.0)) > 0) - T(0.25, 0.5), [0.75, -0.5]),
    ("whole 7 / 2", lambda: Arithmetic(torch.tensor([7]), precision=0).div(2), [3.5]),
    ("20 bits times 16", lambda: Arithmetic(T(1.5), precision=20) * Arithmetic(T(2.5)), [3.75]),
    ("16 bits times 20", lambda: Arithmetic(T(1.5)) * Arithmetic(T(2.5), precision=20), [3.75]),
    ("20 bits plus 16", lambda: Arithmetic(T(1.5), precision=20) + Arithmetic(T(2.5)), [4.0]),
    ("a list", lambda: M([1.5, -2.25]), [1.5, -2.25]),
]


@pytest.mark.parametrize(("what", "private", "right"), FRACTIONS, ids=[case[0] for case in FRACTIONS])
def test_scales_that_meet_keep_the_finer_one(what: str, private: Callable[[], Any], right: list[float]) -> None:
    assert opened(private).reshape(-1).tolist() == pytest.approx(right, abs=1e-4)


def test_an_operand_keeps_its_value_when_another_scale_meets_it() -> None:
    """The addition used to scale its second operand up in place, and with it all that shared its memory."""

    def run(rank: int) -> list[torch.Tensor]:
        bits = M(T(1.0, -1.0)) > 0
        first = bits[:1]
        total = M(T(0.5)) + first
        return [bits.get_plain_text(), first.get_plain_text(), total.get_plain_text()]

    bits, first, total = run_pair(run)[0][0]
    assert (bits.tolist(), first.tolist(), total.tolist()) == ([1, 0], [1], [1.5])


@pytest.mark.parametrize("number", [2**40 + 1, -(2**63) + 5, 2**62 + 3, 16_777_217])
def test_whole_numbers_stay_whole(number: int) -> None:
    for make in (lambda: Binary(torch.tensor([number])), lambda: Arithmetic(torch.tensor([number]), precision=0)):
        value = opened(make)
        assert value.dtype == torch.int64
        assert value.tolist() == [number]


def test_comparisons_open_as_whole_numbers() -> None:
    assert opened(lambda: M(T(1.0, -1.0)) > 0).dtype == torch.int64


@pytest.mark.parametrize("comparisons", ["bits", "keys"])
@pytest.mark.parametrize("precision", [0, 8, 16, 20])
def test_comparisons_are_right_at_every_scale(comparisons: str, precision: int) -> None:
    """By bits CrypTen gives 256 for true at 8 fraction bits, and 0 at 20."""
    names = "lt", "le", "gt", "ge", "eq", "ne"

    def run(rank: int) -> Any:
        compat.current().comparisons = comparisons
        x, y = (
            M(T(*values), src=src, precision=precision) for src, values in enumerate([(-2, 0, 3, 5), (-2, 1, 3, 4)])
        )
        compared = [getattr(x, name)(y) for name in names]
        return [each.get_plain_text().tolist() for each in (*compared, x.sign(), x.abs(), x.relu(), x.max())]

    found = run_pair(run)[0][0]
    assert dict(zip(names, found, strict=False)) == {
        "lt": [0, 1, 0, 0],
        "le": [1, 1, 1, 0],
        "gt": [0, 0, 0, 1],
        "ge": [1, 0, 1, 1],
        "eq": [1, 0, 1, 0],
        "ne": [0, 1, 0, 1],
    }
    assert found[6:] == [[-1, 1, 1, 1], [2, 0, 3, 5], [0, 0, 3, 5], 5]


@pytest.mark.parametrize(("before", "after"), [(20, None), (20, 0), (16, 8), (8, 20), (0, 16)])
def test_words_become_numbers_of_any_scale(before: int, after: int | None) -> None:
    def run(rank: int) -> Any:
        words = M(T(3.0, -5.0), precision=before).to(crypten.mpc.binary)
        return words.to(crypten.mpc.arithmetic, precision=after).get_plain_text().tolist()

    assert run_pair(run)[0][0] == pytest.approx([3.0, -5.0], abs=1e-4)


def test_encoding_is_in_double() -> None:
    assert opened(lambda: M(T(0.0)) + 3000000.4 - 3000000).item() == pytest.approx(0.4, abs=1e-4)
    assert opened(lambda: M(T(0.0)) + 100000.3 - 100000).item() == pytest.approx(0.3, abs=1e-4)
    assert opened(lambda: M(torch.tensor([16_777_217])) - 16_777_216).item() == 1
    assert opened(lambda: M(torch.tensor([100000.3], dtype=torch.float64)) - 100000).item() == pytest.approx(
        0.3, abs=1e-4
    )


def test_batch_norm_of_many_values_in_training() -> None:
    x = torch.linspace(-3.0, 5.0, 100 * 5 * 4 * 8 * 15).view(100, 5, 4, 8, 15)

    def run(rank: int) -> torch.Tensor:
        norm = crypten.nn.BatchNorm3d(5)
        norm.encrypt()
        norm.train()
        result: torch.Tensor = norm(M(x)).get_plain_text()
        return result

    right = torch.nn.BatchNorm3d(5).train()(x).detach()
    assert float((run_pair(run)[0][0] - right).abs().max()) < 0.004


@pytest.mark.parametrize(
    "private",
    [
        lambda: M(T(1.0)) + 2**50,
        lambda: M(T(1.0)) + torch.tensor([2**50]),
        lambda: M(T(1.0)) * 2**50,
        lambda: M(T(1.0)) * torch.tensor([2**50]),
        lambda: M(T(1.0)) * 2.0**50,
        lambda: M(T(1.0)) + 2**70,
        lambda: M(T(1.0)) / 0,
        lambda: M(T(1.0)) / T(0.0),
        lambda: M(T(1.0)) / 1e-20,
        lambda: M(T(1.0)) * float("nan"),
    ],
)
def test_public_numbers_that_do_not_fit_are_refused(private: Callable[[], Any]) -> None:
    with pytest.raises(RangeError):
        opened(private)


def test_the_source_alone_is_checked() -> None:
    """The other party's tensor tells a shape, whatever lies in it."""

    def run(rank: int) -> torch.Tensor:
        mine = torch.tensor([1.5, -2.5]) if rank == 1 else torch.tensor([float("nan"), 1e300], dtype=torch.float64)
        result: torch.Tensor = M(mine, src=1).get_plain_text()
        return result

    assert run_pair(run)[0][0].tolist() == [1.5, -2.5]


def test_a_threads_gradients_are_its_own() -> None:
    flags: dict[int, list[bool]] = {0: [], 1: []}

    def run(rank: int) -> None:
        comm = compat.current().communicator
        flags[rank].append(crypten.CrypTensor.AUTOGRAD_ENABLED)
        if rank == 0:
            crypten.set_grad_enabled(True)
        comm.barrier()
        flags[rank].append(crypten.CrypTensor.AUTOGRAD_ENABLED)

    run_pair(run)
    assert flags == {0: [False, True], 1: [False, False]}


def test_a_threads_settings_are_its_own() -> None:
    cfg, step = crypten.cfg, threading.Barrier(2, timeout=20)
    shipped = (cfg.functions.reciprocal_all_pos, cfg.encoder.precision_bits)

    def seen() -> tuple[Any, Any]:
        return cfg.functions.reciprocal_all_pos, cfg.encoder.precision_bits

    def run(rank: int) -> tuple[Any, Any]:
        # Party 1 begins its override while party 0's is in place, and ends it afterwards. With the process's own
        # settings it would put party 0's override back for good.
        override = cfg.temp_override({"functions.reciprocal_all_pos": True})
        if rank == 0:
            cfg.encoder.precision_bits = 20
            with override:
                step.wait()
            step.wait()
        else:
            step.wait()
            before = seen()
            with override:
                step.wait()
            assert before == shipped
        return seen()

    assert run_pair(run)[0] == [(shipped[0], 20), shipped]
    assert seen() == shipped


def test_the_type_of_new_tensors_is_a_partys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(crypten.CrypTensor.__CRYPTENSOR_TYPES__, "other", crypten.mpc.MPCTensor)
    step = threading.Barrier(2, timeout=20)

    def run(rank: int) -> str:
        if rank == 0:
            crypten.set_default_cryptensor_type("other")
        step.wait()
        found: str = crypten.get_default_cryptensor_type()
        return found

    assert run_pair(run)[0] == ["other", "mpc"]
    assert crypten.get_default_cryptensor_type() == "mpc"


def test_a_party_begins_with_the_settings_of_this_release() -> None:
    def run(rank: int) -> int:
        bits: int = crypten.cfg.encoder.precision_bits
        crypten.cfg.encoder.precision_bits = 20
        return bits

    assert run_pair(run)[0] == run_pair(run)[0] == [compat.FRAC_BITS, compat.FRAC_BITS]
