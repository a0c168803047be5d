"""What the model owner sends of a refused sentence's logits is zeros, whatever the sentence and the weights.

Of a row that only fills a batch nobody learns anything.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpcformer.channel import MemoryChannel, Spec, memory_pair
from mpcformer.engines.lift.reveal import LOGIT_WIRE_BITS
from mpcformer.engines.registry import ENGINES
from mpcformer.ring.packing import packed_bytes, unpack
from tests.engines.test_refused_sentences import batch, with_a_long_word
from tests.pair import run_outcomes
from tests.tiny import save_student

N_SENTENCES, N_LOGITS = 4, 2


def last_message(
    folder: Path, long: tuple[int, ...], engine: str, patch: pytest.MonkeyPatch, n_told: int = N_SENTENCES
) -> torch.Tensor:
    """Return the shares of the logits (B, C) as they arrive at the data owner, in the last message of a batch."""
    seen: list[torch.Tensor] = []
    receive = MemoryChannel.receive
    ends = memory_pair(20)

    def record(self: MemoryChannel, specs: list[Spec]) -> list[torch.Tensor]:
        tensors = receive(self, specs)
        if self is ends[1]:
            seen.append(torch.cat([tensor.reshape(-1) for tensor in tensors]).clone())
        return tensors

    patch.setattr(MemoryChannel, "receive", record)
    _, outcome, *_ = run_outcomes(folder, replace(batch(long), n_told=n_told), engine=engine, ends=ends)
    assert outcome.refused.tolist() == [i in long and i < n_told for i in range(N_SENTENCES)]
    patch.undo()
    if engine == "crypten":
        return seen[-1].view(N_SENTENCES, N_LOGITS)
    verdicts = 8 * N_SENTENCES
    assert seen[-1].numel() == verdicts + packed_bytes(N_SENTENCES * N_LOGITS, LOGIT_WIRE_BITS)
    return unpack(seen[-1][verdicts:], (N_SENTENCES, N_LOGITS), LOGIT_WIRE_BITS)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_of_a_refused_sentences_logits_is_sent(
    tmp_path: Path, data_dir: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir))
    for long in ((0,), (1, 3), ()):
        sent = last_message(folder, long, engine, monkeypatch)
        for i in range(N_SENTENCES):
            assert bool((sent[i] == 0).all()) == (i in long), "a share that is told is zero once in 2^38 times"


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_told_of_rows_that_only_fill_a_batch(
    tmp_path: Path, data_dir: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither their logits nor whether they are out of range: no budget counts them."""
    folder = with_a_long_word(save_student(tmp_path / "student", data_dir))
    for long in ((0, 3), (1, 2), ()):
        sent = last_message(folder, long, engine, monkeypatch, n_told=2)
        assert [bool((row == 0).all()) for row in sent] == [0 in long, 1 in long, True, True]
