"""When a batch is computed: after it was dealt, or while its later segments are dealt."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.correlations import Request
from mpcformer.engines.base import BatchShape
from mpcformer.engines.lift.engine import LiftEngine
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER
from parties.roles.results import Results
from parties.session.owner_session import Dealt, OwnerSession
from tests.parties import one_process

# Two sentences in a batch each, of a student with two layers.
JOB: dict[str, Any] = {"batch_size": 1}
TIMEOUT_S = 20.0


class Watch:
    """Notes by owner whether each batch was whole when its computation began, and may hold dealing back until then.

    Args:
        monkeypatch: pytest's.
        holds: whether each batch's dealing stops after its first segment until both owners compute the batch.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, holds: bool) -> None:
        self.was_whole: dict[int, list[bool]] = {MODEL_OWNER: [], DATA_OWNER: []}
        self._computing: dict[int, threading.Event] = {}
        note, compute = Dealt.note, OwnerSession.compute

        def noting(dealt: Dealt, n_ready: int, *, is_whole: bool = False) -> None:
            note(dealt, n_ready, is_whole=is_whole)
            if holds and n_ready == 1 and not is_whole:
                assert self._begun(dealt).wait(TIMEOUT_S), "nobody computes a batch of which one segment is dealt"

        def computing(session: OwnerSession, dealt: Dealt, *arguments: Any) -> Any:
            self.was_whole[session.rank].append(dealt.is_whole)
            self._begun(dealt).set()
            return compute(session, dealt, *arguments)

        monkeypatch.setattr(Dealt, "note", noting)
        monkeypatch.setattr(OwnerSession, "compute", computing)

    def _begun(self, dealt: Dealt) -> threading.Event:
        return self._computing.setdefault(id(dealt), threading.Event())


@pytest.fixture
def run(student: Path, data_dir: Path, tmp_path: Path) -> Callable[..., Results]:
    """Run two batches through the student, with fields of the job."""

    def ran(changes: dict[str, dict[str, Any]] | None = None, **job: Any) -> Results:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return one_process.run(student, data_dir, folder, changes, **(JOB | job))

    return ran


def test_segments_are_computed_while_others_are_dealt(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = run(overlap=False)
    watch = Watch(monkeypatch, holds=True)
    overlapped = run(overlap=True)
    assert watch.was_whole == {MODEL_OWNER: [False] * 2, DATA_OWNER: [False] * 2}
    logits = [torch.tensor(results.predictions.logits) for results in (apart, overlapped)]
    assert torch.allclose(*logits, atol=0.01)
    rows = [[batch.online.rounds for batch in results.batches["data-owner"]] for results in (apart, overlapped)]
    assert rows[0] == rows[1]
    received = [
        [batch.offline.bytes_from_dealer for batch in results.batches["model-owner"]] for results in (apart, overlapped)
    ]
    assert received[0] == received[1]
    assert min(received[0]) > 0


def test_without_overlap_a_batch_is_dealt_before_it_is_computed(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch, holds=False)
    run(overlap=False)
    # The model owner may hear that the batch is asked for a moment before its other thread has done the last step.
    assert watch.was_whole[DATA_OWNER] == [True] * 2


def test_a_batch_that_may_be_audited_is_dealt_before_it_is_computed(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a batch is audited is decided after the dealer has sent all of it, and before anything of it is used."""
    watch = Watch(monkeypatch, holds=False)
    run({name: {"audit_rate": 0.01} for name in ("model-owner", "data-owner")}, overlap=True)
    assert watch.was_whole == {MODEL_OWNER: [True] * 2, DATA_OWNER: [True] * 2}


@pytest.mark.parametrize("overlap", [False, True])
def test_both_owners_plan_a_batch_at_the_same_time(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """An owner that planned after the other one would let it wait here for ever."""
    plan, met, planned = LiftEngine.plan, threading.Barrier(2), set()

    def planning(engine: LiftEngine, shape: BatchShape) -> list[list[Request]]:
        if engine._channel is not None and (engine._rank, shape) not in planned:
            planned.add((engine._rank, shape))
            met.wait(TIMEOUT_S)
        return plan(engine, shape)

    monkeypatch.setattr(LiftEngine, "plan", planning)
    run(overlap=overlap)
    assert {rank for rank, _ in planned} == {MODEL_OWNER, DATA_OWNER}
