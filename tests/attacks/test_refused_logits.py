"""What is sent of a refused sentence's logits tells nothing of them, and nothing is told of rows that fill a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.engines.base import Outcome
from mpcformer.engines.crypten import ops
from mpcformer.engines.crypten.compat import current
from mpcformer.engines.lift.scales.head import LOGIT_WIRE_BITS
from mpcformer.protocols import sealed
from mpcformer.ring.packing import reduce
from tests.engines.test_refused_sentences import batch, with_a_long_word
from tests.pair import run_outcomes
from tests.tiny import save_student

N_SENTENCES, N_LOGITS = 4, 2


def run(folder: Path, long: tuple[int, ...], engine: str, n_told: int = N_SENTENCES) -> Outcome:
    _, outcome, *_ = run_outcomes(folder, replace(batch(long), n_told=n_told), engine=engine)
    assert outcome.known()[0].tolist() == [i in long and i < n_told for i in range(N_SENTENCES)]
    return outcome


class Sealed:
    """What the model owner sealed, and what the data owner made of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.numbers = self.found = self.block = torch.empty(0)
        self._seal, self._unseal = sealed.seal, sealed.unseal
        patch.setattr(sealed, "seal", self.seal)
        patch.setattr(sealed, "unseal", self.unseal)

    def seal(self, block: torch.Tensor, numbers: torch.Tensor, bits: int) -> list[tuple[torch.Tensor, int]]:
        self.numbers, self.block = reduce(numbers, bits), block
        return self._seal(block, numbers, bits)

    def unseal(self, block: torch.Tensor, tags: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        is_open, found = self._unseal(block, tags, told)
        self.found, self.block = reduce(found, LOGIT_WIRE_BITS), self.block + block
        return is_open, found


def test_nothing_of_a_refused_sentences_logits_is_told(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data owner's key opens nothing, and is another one in both of its words."""
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir))
    for long in ((0,), (1, 3), ()):
        with monkeypatch.context() as patch:
            seen = Sealed(patch)
            run(folder, long, "lift")
        for i in range(N_SENTENCES):
            assert bool((seen.found[i] == seen.numbers[i]).all()) == (i not in long), "equal once in 2^38 times"
            assert (seen.block[i] == 0).tolist() == [i not in long] * 2


def test_nothing_is_told_of_rows_that_only_fill_a_batch(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither their logits nor whether they are out of range: no budget counts them."""
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir))
    for long in ((0, 3), (1, 2), ()):
        with monkeypatch.context() as patch:
            seen = Sealed(patch)
            run(folder, long, "lift", n_told=2)
        assert (seen.numbers == 0).all(1).tolist() == [False, False, True, True]
        assert (seen.block == 0).all(1).tolist() == [0 not in long, 1 not in long, True, True]


@pytest.mark.parametrize("n_told", [N_SENTENCES, 2])
def test_crypten_opens_zeros_in_place_of_logits_that_are_not_told(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, n_told: int
) -> None:
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir))
    shares: dict[int, torch.Tensor] = {}
    select = ops.select

    def record(bits: torch.Tensor, x: Any) -> Any:
        product = select(bits, x)
        if tuple(bits.shape) == (N_SENTENCES, 1):
            shares[current().rank] = product.share.clone()
        return product

    monkeypatch.setattr(ops, "select", record)
    for long in ((0,), (1, 3), ()):
        _, logits = run(folder, long, "crypten", n_told).known()
        told = [i < n_told and i not in long for i in range(N_SENTENCES)]
        opened = shares[0] + shares[1]
        assert opened.shape == (N_SENTENCES, N_LOGITS)
        assert (opened != 0).any(1).tolist() == (~logits.isnan()).any(1).tolist() == told
        assert not bool((shares[0] == 0).all(1).any()), "shares of zero are uniform, too"
