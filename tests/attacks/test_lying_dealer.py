"""A dealer that deals wrongly is caught by audits, and named with the operation.

In the attack the dealer adds a number to what it deals for the last map, which shifts the logits by as much as it
likes, or turns marks. No owner noticed.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.channel import memory_pair
from mpcformer.correlations import (
    CorrelationStore,
    MaskKeys,
    Request,
    correction_specs,
    deal,
    mask_keys,
    session_key,
)
from mpcformer.errors import PartyError, ProtocolError
from mpcformer.ring.random import fresh_key
from parties.roles import dealer
from parties.session import transcript
from parties.session.audit import Audit
from tests.pair import in_two_threads
from tests.parties import one_process
from tests.parties.test_fuzzed_requests import HONEST

AUDITED = {name: {"audit_rate": 0.5} for name in ("model-owner", "data-owner")}
PLAN = [Request("truncation", ((3,),), bits=16), Request("square_pair", ((4,),))]


class Coins:
    """Coins that come up as a list says, the same at both owners."""

    def __init__(self, patch: pytest.MonkeyPatch, *chosen: bool) -> None:
        draw, self._chosen = transcript.draw_together, chosen
        self._seen: dict[int, int] = {0: 0, 1: 0}
        self._lock = threading.Lock()

        def toss(channel: Any, rank: int, label: bytes) -> bytes:
            drawn = draw(channel, rank, label)
            if not label.startswith(b"audit"):
                return drawn
            with self._lock:
                n = self._seen[rank]
                self._seen[rank] += 1
            return bytes(16) if n < len(self._chosen) and self._chosen[n] else b"\xff" * 16

        patch.setattr(transcript, "draw_together", toss)

    @property
    def n_tossed(self) -> int:
        assert self._seen[0] == self._seen[1]
        return self._seen[0]


def shift_logits(patch: pytest.MonkeyPatch) -> None:
    """Let the dealer lie about every classifier's map."""

    def lie(request: Request, *keys: Any) -> list[torch.Tensor]:
        correction = deal(request, *keys)
        if request.op.startswith("classifier"):
            correction[0] = correction[0] + (1 << 50)
        return correction

    patch.setattr(dealer, "deal", lie)


def test_a_dealer_that_shifts_logits_is_caught_and_named(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_logits(monkeypatch)
    Coins(monkeypatch, True)
    with pytest.raises(PartyError, match=r"dealer: an audit found operation \d+ \(linear\) dealt wrongly"):
        one_process.run(student, data_dir, tmp_path, AUDITED)


def test_without_an_audit_nobody_notices(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is why there are audits: the same lie passes where the coins never choose a batch."""
    (tmp_path / "honest").mkdir()
    (tmp_path / "lying").mkdir()
    honest = one_process.run(student, data_dir, tmp_path / "honest")
    shift_logits(monkeypatch)
    Coins(monkeypatch, False)
    lying = one_process.run(student, data_dir, tmp_path / "lying", AUDITED)
    differences = [abs(a - b) for a, b in zip(honest.predictions.logits, lying.predictions.logits, strict=True)]
    assert min(differences) > 0.01


def test_audited_batches_are_dropped_and_others_answer(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plain", "audited"):
        (tmp_path / name).mkdir()
    plain = one_process.run(student, data_dir, tmp_path / "plain", batch_size=1)
    coins = Coins(monkeypatch, True, False, True, True, False)
    audited = one_process.run(student, data_dir, tmp_path / "audited", AUDITED, batch_size=1)
    assert coins.n_tossed == 5, "two batches, and three that were audited in their place"
    assert audited.predictions.logits == pytest.approx(plain.predictions.logits, abs=0.005)


def test_owners_must_agree_on_the_rate(student: Path, data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PartyError, match="the owners disagree on: audit_rate"):
        one_process.run(student, data_dir, tmp_path, {"model-owner": {"audit_rate": 0.5}})


def run_audits(rate: float, n: int) -> list[Any]:
    """Audit n batches of a made-up plan, and return at both owners which can be used."""
    ends, seeds, drawn = memory_pair(20), [fresh_key(), fresh_key()], fresh_key()
    stores = [CorrelationStore(rank=rank, seed=seeds[rank], session_id=drawn) for rank in (0, 1)]

    def owner(rank: int) -> list[bool]:
        mine = Audit(rank=rank, rate=rate, channel=ends[rank], session_id=drawn, dealer="dealer")
        found = []
        for _ in range(n):
            first = stores[rank].next_operation
            part = stores[rank].reserve(len(PLAN))
            if rank == 0:
                for i, request in enumerate(PLAN):
                    keys = [session_key(seed, drawn, first + i, request) for seed in seeds]
                    correction = deal(request, *keys, mask_keys(seeds[0], drawn, first))
                    mine.note(first + i, correction)
            found.append(mine.passes(part, first, PLAN))
        return found

    return in_two_threads(owner)


def test_both_owners_choose_the_same_batches_and_as_many_as_the_rate_says() -> None:
    first, second = run_audits(0.25, 400)
    assert first == second
    assert 60 < first.count(False) < 140
    assert run_audits(0.0, 5) == [[True] * 5] * 2


@pytest.mark.parametrize("request_", HONEST, ids=[f"{r.kind}-{r.op}" for r in HONEST])
def test_all_that_is_dealt_follows_from_the_keys(request_: Request) -> None:
    keys = fresh_key(), fresh_key(), MaskKeys(fresh_key(), fresh_key())
    first, second = deal(request_, *keys), deal(request_, *keys)
    assert [(t.dtype, tuple(t.shape)) for t in first] == [(s.dtype, s.shape) for s in correction_specs(request_)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = deal(request_, keys[0], fresh_key(), keys[2])
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_keys_are_revealed_of_whole_unused_batches_alone() -> None:
    store = CorrelationStore(rank=1, seed=fresh_key(), session_id=fresh_key())
    request = Request("square_pair", ((4,),))
    with pytest.raises(ProtocolError, match="whole batches alone"):
        store.give_up([request])
    part = store.reserve(2)
    part.take(request)
    with pytest.raises(ProtocolError, match="whole batches alone"):
        part.give_up([request])
    part = store.reserve(2)
    with pytest.raises(ProtocolError, match="whole batches alone"):
        part.give_up([request])
    keys, _ = part.give_up([request, request])
    assert len(set(keys)) == 2
    with pytest.raises(ProtocolError):
        part.take(request)
