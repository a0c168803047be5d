"""What the model owner is shown to have seen is the online part, however a batch was dealt."""

import pytest

import mpcformer
from mpcformer.modeling.folder import first_student
from parties.session import seen


def test_only_online_messages_are_shown_of_a_batch_that_is_dealt_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "N_COUNTED", 1 << 30)
    shown = {}
    for pool_mib in (1, 256):
        with mpcformer.local(first_student(), pool_mib=pool_mib, batch_size=4, ahead=0, first=(1, 16)) as classify:
            shown[pool_mib] = [
                next(iter(classify.answers(["a warm day"] * 4, details=True, seen=True)))["seen"] for _ in range(2)
            ]
    # What the owners exchange while they deal in parts is no part of it: as many bytes as of a batch dealt at once.
    counted = {sum(each.histogram) for both in shown.values() for each in both}
    assert len(counted) == 1
    # A plan's digest, which is the same each time, came first once.
    assert len({each.first[:32] for both in shown.values() for each in both}) == 4
