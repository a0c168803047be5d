"""Of logits that are not told, refused ones and those of filled-up places, the model owner sends zeros."""

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
    folder: Path, long: tuple[int, ...], engine: str, patch: pytest.MonkeyPatch, n_told: int | None = None
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
    assert outcome.refused.tolist() == [i in long for i in range(N_SENTENCES)]
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
    for long, n_told in (((0,), None), ((1, 3), None), ((), None), ((), 3), ((1,), 2)):
        sent = last_message(folder, long, engine, monkeypatch, n_told)
        for i in range(N_SENTENCES):
            withheld = i in long or (n_told is not None and i >= n_told)
            assert bool((sent[i] == 0).all()) == withheld, "a share that is told is zero once in 2^38 times"
