"""What each owner receives is uniform and new in every run, and does not depend on the input or the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from mpcformer.channel import MemoryChannel, Spec, memory_pair
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.engines.base import BatchInputs
from mpcformer.engines.crypten.compat import current
from mpcformer.engines.registry import ENGINES
from mpcformer.programs import dry_run, load_program
from tests.pair import play, run_private
from tests.tiny import save_student

N_RUNS = {"lift": 30, "crypten": 10}
ERROR = 1e-4
View = list[bytes]


def views(
    folder: Path, token: int, engine: str, monkeypatch: pytest.MonkeyPatch, n_batches: int = 1
) -> tuple[View, View]:
    """Return all messages that each owner receives after set-up, for a text that repeats one word."""
    seen: dict[int, View] = {}
    receive = MemoryChannel.receive

    def record(self: MemoryChannel, specs: list[Spec]) -> list[torch.Tensor]:
        tensors = receive(self, specs)
        seen.setdefault(id(self), []).append(b"".join(t.contiguous().numpy().tobytes() for t in tensors))
        return tensors

    ids = torch.tensor([[2, token, token, token, 3, 0]])
    inputs = BatchInputs(torch.tensor([[1, 1, 1, 1, 1, 0]]), ids, torch.zeros_like(ids))
    ends = memory_pair(20)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryChannel, "receive", record)
        _, logits, *_ = run_private(folder, inputs, engine=engine, n_batches=n_batches, ends=ends)
    at_model_owner, at_data_owner = seen[id(ends[0])], seen[id(ends[1])]
    if engine == "lift":
        # A tag, and the encrypted shares of the logits.
        assert len(at_data_owner[-1]) == 24 + 3 * logits.numel()
    return at_model_owner, at_data_owner


def p_values(left: list[View], right: list[View], *, uniform: bool) -> list[float]:
    """Return the p-values of tests on the bytes of each message over all runs.

    The tests' hypotheses are that both inputs give the same distribution and, if `uniform`, that it is uniform.
    """
    found: list[float] = []
    for messages in zip(*left, *right, strict=True):
        groups = [messages[: len(left)], messages[len(left) :]]
        joined = [np.frombuffer(b"".join(group), np.uint8) for group in groups]
        # Chi-square's tails are right only where some twenty are expected in each bin.
        n_bins = 256 if joined[0].size > 5000 else 16 if joined[0].size > 320 else 4
        counts = np.stack([np.bincount(values // (256 // n_bins), minlength=n_bins) for values in joined])
        used = counts[:, counts.sum(0) > 0]
        if used.shape[1] > 1:
            found.append(float(stats.chi2_contingency(used).pvalue))
        if uniform:
            found += [float(stats.chisquare(count).pvalue) for count in counts]
            # Where the bins are few they hold the highest bits alone: these are the lowest.
            lowest = [np.bincount(values % 4, minlength=4) for values in joined]
            found += [float(stats.chisquare(count).pvalue) for count in lowest]
            if len(messages[0]) >= 8:
                # Read the first eight bytes of each run's message as one number.
                words = [np.array([int.from_bytes(m[:8], "little") for m in group]) / 2.0**64 for group in groups]
                found.append(float(stats.ks_2samp(*words).pvalue))
                found += [float(stats.kstest(group, "uniform").pvalue) for group in words]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_views_do_not_depend_on_the_input(student: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    check_views(student, engine, N_RUNS[engine], monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"gelu": "gelu", "softmax": "softmax"}, marks=pytest.mark.slow),
        # `test_maskedness` proves more for all of these, and is quicker.
        pytest.param({"softmax": "2quad-const"}, marks=pytest.mark.slow),
        pytest.param({"softmax": "2quad-const", "constant_norms": ["all"]}, marks=pytest.mark.slow),
        {"precision": "compact", "weight_bits": 8},
        pytest.param({"vocab_size": 7000}, marks=pytest.mark.slow),  # rows are looked up by buckets
    ],
    ids=["exact", "2quad-const", "constant norms", "compact", "large vocabulary"],
)
def test_views_of_other_students(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    check_views(save_student(tmp_path / "other", data_dir, **changes), "lift", 12, monkeypatch)


def check_views(folder: Path, engine: str, n_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the views of two texts; if their statistics raise an alarm, look at fresh and more runs."""
    # CrypTen opens single bits as whole words. They are alike for all inputs, but not uniform in every byte.
    uniform = engine == "lift"
    for n in (n_runs, 3 * n_runs):
        runs = {token: [views(folder, token, engine, monkeypatch) for _ in range(n)] for token in (5, 11)}
        for party in (0, 1):
            long = [m for token in runs for run in runs[token] for m in run[party] if len(m) >= (8 if uniform else 512)]
            assert len(set(long)) == len(long), "two messages are equal: a mask was used twice"
        texts = [[[run[party] for run in group] for group in runs.values()] for party in (0, 1)]
        if not any(is_alarming(p_values(*groups, uniform=uniform)) for groups in texts):
            return
    pytest.fail("both looks raised an alarm, which happens by chance less than once in a million suites")


def is_alarming(found: list[float]) -> bool:
    """Say whether a p-value is so small that one set in ten thousand has one by chance (Bonferroni)."""
    return min(found) < ERROR / len(found)


@pytest.mark.slow
def test_views_of_programs_with_keys_do_not_depend_on_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the dealer and the other owner send before the results, of a program with keys of both kinds."""
    loaded = load_program(Path(__file__).parents[1] / "programs" / "files" / "keys.py:twice")
    plan, y = dry_run(loaded), torch.tensor([0.0, 1.0, 2.0])
    seen: dict[int, View] = {}

    def note(rank: int, tensors: list[torch.Tensor]) -> None:
        seen[rank].extend(tensor.contiguous().numpy().tobytes() for tensor in tensors)

    receive, put = MemoryChannel.receive, CorrelationStore.put

    def received(end: MemoryChannel, specs: list[Spec]) -> list[torch.Tensor]:
        tensors = receive(end, specs)
        note(current().rank, tensors)
        return tensors

    def dealt(store: CorrelationStore, operation: int, request: Request, correction: list[torch.Tensor]) -> None:
        note(store.rank, correction)
        put(store, operation, request, correction)

    monkeypatch.setattr(MemoryChannel, "receive", received)
    monkeypatch.setattr(CorrelationStore, "put", dealt)
    runs: list[list[tuple[View, View]]] = []
    for x in (y, torch.tensor([-(2.0**44), 2.0**44, 0.0])):
        runs.append([])
        for _ in range(12):
            seen = {0: [], 1: []}
            play(loaded, {"x": x, "y": y}, plan)
            # The data owner receives two results.
            runs[-1].append((seen[0], seen[1][:-2]))
    for party in (0, 1):
        assert not is_alarming(p_values(*([run[party] for run in group] for group in runs), uniform=True))


def test_the_statistics_would_notice_a_missing_mask(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test fails if one of the messages is not masked."""
    runs = {token: [views(student, token, "lift", monkeypatch)[0] for _ in range(10)] for token in (5, 11)}
    for token, group in runs.items():
        for run in group:
            run[7] = bytes([token]) * len(run[7])
    assert is_alarming(p_values(runs[5], runs[11], uniform=True))


def test_the_same_text_twice_in_a_session_looks_new(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a session only the masks of the weights stay, so a known text reveals nothing about the next one."""
    for view in views(student, 5, "lift", monkeypatch, n_batches=3):
        long = [message for message in view if len(message) >= 8]
        assert len(set(long)) == len(long)
