"""A data owner that changes what it sends into the last map is told no logit of that sentence.

In the attack it adds a large number to one entry of its masked input. The logits then grow by this number times a row
of the classifier, so one batch of H sentences told the whole classifier, and nobody noticed.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy.linalg import hadamard

from mpcformer.engines.base import BatchInputs, Outcome, load_public_model
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.engines.lift.scales import fixed_point as fp
from mpcformer.modeling import load_student
from mpcformer.protocols import linear
from mpcformer.protocols.party import DATA_OWNER, Half, Party
from mpcformer.protocols.table import Lookup
from mpcformer.ring.random import Stream, fresh_key
from tests.pair import run_outcomes
from tests.tiny import save_student

N_UNITS = 4
IDS = torch.tensor([[2, 7, 14, 9, 3]]).repeat(N_UNITS + 1, 1)


def ask(folder: Path, patch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> Outcome:
    """Return what is told of one text, asked N_UNITS + 1 times, with a change of what enters the last map."""
    send, hidden = Party.send, load_student(folder).config.hidden_size

    def changed(party: Party, halves: list[Half]) -> torch.Tensor:
        # The last message has the half of the zero test, and then the input of the last map.
        is_last = party.rank == DATA_OWNER and len(halves) > 1 and halves[1][0].shape == (N_UNITS + 1, hidden)
        return send(party, [halves[0], (change(halves[1][0]), halves[1][1]), *halves[2:]] if is_last else halves)

    with patch.context() as inner:
        inner.setattr(Party, "send", changed)
        inputs = BatchInputs(torch.ones_like(IDS), IDS, torch.zeros_like(IDS))
        _, outcome, *_ = run_outcomes(folder, inputs, engine="lift")
    return outcome


def test_an_honest_input_passes(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, logits = ask(student, monkeypatch, lambda x: x).known()
    assert not refused.any()
    assert (logits - logits[0]).abs().max() < 0.01


def test_the_classifier_is_not_told_row_by_row(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, the differences of the logits were the first rows of the classifier."""
    size = 8.0

    def unit_vectors(x: torch.Tensor) -> torch.Tensor:
        changed = x.clone()
        changed[torch.arange(1, N_UNITS + 1), torch.arange(N_UNITS)] += int(size * 2**fp.TABLE_SCALE)
        return changed

    refused, logits = ask(student, monkeypatch, unit_vectors).known()
    assert refused.tolist() == [False, *[True] * N_UNITS]
    assert logits[1:].isnan().all()


@pytest.mark.parametrize("at", [0, 1 << 40])
def test_a_single_changed_number_is_enough(student: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    def one(x: torch.Tensor) -> torch.Tensor:
        changed = x.clone()
        changed[2, 5] += 1 + 2 * at
        return changed

    assert ask(student, monkeypatch, one).known()[0].tolist() == [i == 2 for i in range(N_UNITS + 1)]


def test_each_batch_has_keys_of_its_own(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the session's keys, whether an error of 2^63 passed told a bit of a key, and of 2^62 then the next one.

    Twelve sentences told a key's low bits, and with them errors that pass: a row of the classifier.
    """
    expected_tag, seen = linear.expected_tag, []

    def spy(x: torch.Tensor, masked: torch.Tensor, keys: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if keys.device.type != "meta":
            seen.append(keys.clone())
        return expected_tag(x, masked, keys, *rest)

    monkeypatch.setattr(linear, "expected_tag", spy)
    inputs = BatchInputs(torch.ones_like(IDS), IDS, torch.zeros_like(IDS))
    _, outcome, *_ = run_outcomes(student, inputs, engine="lift", n_batches=3)
    assert not outcome.known()[0].any()
    assert [keys.shape for keys in seen] == [(load_student(student).config.hidden_size,)] * 3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (seen[a] == seen[b]).any()


@pytest.mark.parametrize("log_power", [63, 61, 59])
def test_only_the_top_bits_pass_and_as_often_as_is_stated(log_power: int) -> None:
    """An error of 2^v times a number passes with a probability of 2^(v - 64): it tells no more than the low bits."""
    rows, columns = 4096, 3
    stream = Stream(fresh_key())
    shapes = (2, rows, columns), (rows, columns), (rows, columns), (rows, columns), (rows, 1)
    x, keys, mask, tags, own = (stream.int64(shape) for shape in shapes)  # each row has keys of its own
    theirs = (x[0] + x[1]) * keys - tags
    correction = (mask * keys).sum(1, keepdim=True) - own
    told = linear.tag(tags, own)

    def passes(error: torch.Tensor) -> torch.Tensor:
        return told == linear.expected_tag(x[0], x[1] - mask + error, keys, theirs, correction)

    assert passes(torch.zeros(columns, dtype=torch.int64)).all()
    error = torch.tensor([0, 3 << log_power if log_power < 62 else -1 << 63, 0])
    expected = rows * 2.0 ** (log_power - 64)
    assert abs(float(passes(error).sum()) - expected) < 6 * expected**0.5
    assert not passes(torch.tensor([1, 0, 0])).any()


def test_errors_in_the_arguments_of_tanh_are_followed_by_the_tags(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheapest way to the classifier that is left: it is in the table of docs/threat-model.md, with this price.

    Each sentence pushes all arguments to the ends of tanh, by the signs of a row of Hadamard's matrix. The logits are
    then as many equations in the classifier as there are sentences.
    """
    n_asked, hidden = 128, load_student(student).config.hidden_size
    signs = torch.tensor(hadamard(n_asked))[:, : hidden + 1].long()
    # Beyond the ends of the table an argument is marked or wraps around, so nobody pushes it further than that.
    head = engine_constants(load_public_model(student)).head
    assert head.dense is not None
    end = 0.7 * head.dense.reach
    pushed, halves = (signs[:, 1:] * (end * 2.0**fp.TANH_SCALE)).round().long().view(-1), Lookup.halves

    def changed(self: Lookup, share: torch.Tensor) -> list[Half]:
        is_pushed = self._rank == DATA_OWNER and self._function.upper.spec.function == "tanh"
        return halves(self, share + pushed if is_pushed and share.device.type != "meta" else share)

    monkeypatch.setattr(Lookup, "halves", changed)
    ids = IDS[:1].repeat(n_asked, 1)
    inputs = BatchInputs(torch.ones_like(ids), ids, torch.zeros_like(ids))
    refused, logits = run_outcomes(student, inputs, engine="lift")[1].known()
    assert not refused.any()
    solved = (signs.double().T @ logits.double() / n_asked)[1:] / math.tanh(end)
    scale = 2.0**head.weight_scale
    weight = load_student(student).classifier.weight.detach().double().T
    # All are told to within their last digit. If a day this fails, the classifier has become dearer: change the table.
    assert (solved - weight).abs().max() < 1 / scale


def test_compact_students_have_tags_too(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_student(tmp_path / "student", data_dir, precision="compact", weight_bits=8)
    assert ask(folder, monkeypatch, lambda x: x + 1).known()[0].all()
