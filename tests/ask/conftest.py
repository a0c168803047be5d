"""A student that refuses every text with a word that it does not know, and its parties on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import mpcformer
from parties.ask.classifier import Classifier
from tests.engines.test_refused_sentences import with_a_long_word
from tests.tiny import save_student


@pytest.fixture(scope="package")
def picky(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny student; unknown words leave its calibrated range."""
    return with_a_long_word(save_student(tmp_path_factory.mktemp("picky") / "student", data_dir))


@pytest.fixture(scope="package")
def classify(picky: Path) -> Iterator[Classifier]:
    """All parties on this machine; several tests ask them."""
    with mpcformer.local(picky, first=(1, 16), ahead=1) as found:
        yield found
