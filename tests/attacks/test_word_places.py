"""Whoever orders a session cannot choose where words lie, so no text can be fitted to a session before it begins.

In the attack somebody knows the places of words, and writes a text whose words fill all buckets that one other word
could take. Where this text shares a part with another one, the lookup fails exactly if the other text holds that word.
The places followed from the session's id, which the coordinator supplies.
"""

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcformer.channel import MemoryChannel, Spec, memory_pair
from mpcformer.correlations.row_lookup import Places, places, salt_of
from mpcformer.errors import PartyError, ProtocolError
from mpcformer.protocols.row_lookup import place
from parties.session import owner_session, transcript
from tests.pair import in_two_threads
from tests.parties import one_process

N_WORDS, CHOSEN, IN_GROUP = 30_522, 12_345, 107
COORDINATORS_ID = b"by a coordinator"


def obstacle(where: Places, chosen: int) -> torch.Tensor:
    """Return words that fill the buckets of `chosen` and of each other, as few as a greedy search finds."""
    buckets = where.bucket  # (3, V)
    words, taken = [], torch.zeros(int(buckets.max()) + 1, dtype=torch.bool)
    taken[buckets[:, chosen]] = True
    while len(words) < int(taken.sum()):
        new = (~taken[buckets]).sum(0)
        new[[chosen, *words]] = 4
        words.append(int(new.argmin()))
        taken[buckets[:, words[-1]]] = True
    return torch.tensor(words)


def fails(text: torch.Tensor, neighbour: torch.Tensor, where: Places) -> bool:
    try:
        place(torch.cat([text, neighbour]), where)
    except ProtocolError:
        return True
    return False


def neighbours(n: int, *, hold: bool) -> list[torch.Tensor]:
    """Return texts of 30 words that hold the chosen word, or do not."""
    found = []
    for seed in range(n):
        words = torch.randint(N_WORDS - 1, (30,), generator=torch.Generator().manual_seed(seed))
        words[words >= CHOSEN] += 1
        if hold:
            words[seed % 30] = CHOSEN
        found.append(words)
    return found


def drawn(session_id: bytes) -> bytes:
    """Return the id that two honest owners draw for a session of this name."""
    ends = memory_pair(20)
    results = in_two_threads(lambda rank: transcript.draw_together(ends[rank], rank, session_id))
    assert results[0] == results[1]
    return bytes(results[0])


def test_a_text_that_was_fitted_to_a_coordinators_id_asks_nothing() -> None:
    guessed = places(N_WORDS, IN_GROUP, salt_of(COORDINATORS_ID))
    text = obstacle(guessed, CHOSEN)
    assert len(text) < 60
    with_it, without = neighbours(40, hold=True), neighbours(40, hold=False)
    assert all(fails(text, other, guessed) for other in with_it), "the attack works where the places are as guessed"
    assert sum(fails(text, other, guessed) for other in without) < 20
    for _ in range(2):
        where = places(N_WORDS, IN_GROUP, salt_of(drawn(COORDINATORS_ID)))
        assert not any(fails(text, other, where) for other in with_it + without)


def test_the_sessions_of_one_name_have_ids_of_their_own() -> None:
    ids = [drawn(COORDINATORS_ID) for _ in range(10)]
    assert len(set(ids)) == 10
    assert all(len(each) == 16 for each in ids)


@pytest.mark.parametrize("message", [0, 1])
def test_an_owner_that_changes_its_mind_is_noticed(message: int) -> None:
    """Neither another commitment nor another nonce passes, nor the other owner's own commitment sent back."""
    ends = memory_pair(1.0)

    class Lying:
        def __init__(self) -> None:
            self.n_sent = 0

        def send(self, tensors: list[torch.Tensor]) -> None:
            changed = [tensor ^ (self.n_sent == message) for tensor in tensors]
            self.n_sent += 1
            ends[0].send(changed)

        def receive(self, specs: list[Spec]) -> list[torch.Tensor]:
            return ends[0].receive(specs)

    def lie() -> None:
        liar: Any = Lying()
        with contextlib.suppress(PartyError):  # the honest owner may leave first
            transcript.draw_together(liar, 0, COORDINATORS_ID)

    thread = threading.Thread(target=lie, daemon=True)
    thread.start()
    with pytest.raises(ProtocolError, match="not the one that it committed to"):
        transcript.draw_together(ends[1], 1, COORDINATORS_ID)
    thread.join(20)


def test_an_owner_that_mirrors_the_other_is_noticed() -> None:
    mine, theirs = memory_pair(20)

    def mirror(channel: MemoryChannel) -> None:
        for _ in range(2):
            channel.send(channel.receive([Spec(torch.uint8, (32,))]))

    thread = threading.Thread(target=mirror, args=(theirs,), daemon=True)
    thread.start()
    with pytest.raises(ProtocolError, match="not the one that it committed to"):
        transcript.draw_together(mine, 1, COORDINATORS_ID)
    thread.join(20)


def test_no_nonce_is_sent_before_both_have_committed() -> None:
    """An owner that waits for the other's message gets a digest, from which it cannot compute the id."""
    ends = memory_pair(1.0)

    def honest() -> None:
        with contextlib.suppress(PartyError):  # nobody opens
            transcript.draw_together(ends[0], 0, COORDINATORS_ID)

    thread = threading.Thread(target=honest, daemon=True)
    thread.start()
    (commitment,) = ends[1].receive([Spec(torch.uint8, (32,))])
    assert ends[1]._inbox.empty()
    thread.join(0.2)
    assert thread.is_alive(), "it waits for the other's commitment"
    assert ends[1]._inbox.empty()
    ends[1].send([torch.zeros(32, dtype=torch.uint8)])
    (nonce,) = ends[1].receive([Spec(torch.uint8, (32,))])
    expected = hashlib.sha256(b"nonce of owner\x00" + COORDINATORS_ID + nonce.numpy().tobytes()).digest()
    assert commitment.numpy().tobytes() == expected
    thread.join(20)


def test_a_whole_job_uses_what_the_owners_drew(
    student: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator names two sessions alike. Engines and correlations never see that name."""
    from parties.roles import coordinator, model_owner
    from parties.session import data_side, orderer

    seen: list[bytes] = []

    def recording(make: Any) -> Any:
        def record(*args: Any, **options: Any) -> Any:
            seen.append(options["session_id"])
            return make(*args, **options)

        return record

    monkeypatch.setattr(orderer, "fresh_key", lambda: COORDINATORS_ID)
    monkeypatch.setattr(model_owner, "create_engine", recording(model_owner.create_engine))
    monkeypatch.setattr(data_side, "create_engine", recording(data_side.create_engine))
    monkeypatch.setattr(owner_session, "CorrelationStore", recording(owner_session.CorrelationStore))
    assert coordinator.Coordinator.new_job is orderer.Orderer.new_job
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        one_process.run(student, data_dir, tmp_path / run)
    assert len(seen) == 8
    assert len(set(seen)) == 2, "both owners and both uses have the same id, and each session has its own"
    assert COORDINATORS_ID not in seen
