"""The owners' pools may have different sizes: the smaller number counts at both."""

from pathlib import Path

import pytest

from parties.ask.classifier import Classifier
from parties.ask.local import LocalParties
from parties.ask.options import AskOptions


@pytest.mark.parametrize(("ours", "theirs"), [(1, 64), (64, 1)])
def test_a_batch_that_fits_into_one_pool_alone(picky: Path, ours: int, theirs: int) -> None:
    """Four texts take 1.6 MiB: they are dealt in parts, which both owners must cut alike."""
    site = LocalParties(picky, engine="lift", threads=1, device="cpu", pool_mib=theirs)
    config = site.data_owner().model_copy(update={"pool_mib": ours})
    with Classifier(config, AskOptions(ahead=0, first=(1, 16)), on_close=site.close) as classify:
        found = list(classify(["warm", "cold", "the day was fine", "lovely"], details=True))
    assert [answer["batch"] for answer in found] == [[4, 16]] * 4
    assert not any(answer["dealt_ahead"] for answer in found)
    # The tables of tanh and the last map, which share the keys of tags, may be dealt in different parts.
    assert not any(answer.get("refused") for answer in found)
