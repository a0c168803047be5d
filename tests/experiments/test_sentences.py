"""Experiments of kind `sentences`: how private embeddings are compared with plaintext ones, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from experiments.kinds.sentences import compared
from experiments.replay import ReplayOptions, run
from experiments.spec.spec import find
from mpcformer.errors import UserInputError


def unit(angles: list[float]) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles])


ANGLES = [0.0, 0.1, 0.3, 1.0, 1.2, 2.0, 2.15]
PAIRS = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])


def test_equal_embeddings_agree_in_everything() -> None:
    plain = unit(ANGLES)
    found = compared(plain, plain.copy(), PAIRS, np.array([5.0, 1.0, 3.0, 0.0]), 2)
    assert found["least_cosine"] == pytest.approx(1.0)
    assert found["recall"] == 1.0
    assert found["compared_score"] == found["private_score"] == pytest.approx(0.5)  # (0.1, 0.7, 0.8) against (5, 1, 3)


def test_embeddings_that_differ_and_refused_ones() -> None:
    plain, private = unit(ANGLES), unit([0.0, 0.1, 0.3, 1.0, 1.2, 2.0, 0.05])
    private[2] = np.nan
    found = compared(plain, private, PAIRS, np.array([5.0, 1.0, 3.0, 0.0]), 1)
    # Sentence 2 was refused, so its pair does not count; sentence 7 was not asked for.
    assert found["compared_score"] == found["private_score"] == pytest.approx(1.0)
    assert found["least_cosine"] == pytest.approx(np.cos(2.1))
    # The last sentence has moved next to the first: 2 of the 6 that were answered keep their nearest neighbour.
    assert found["recall"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = "made-up"', 'data = "made-up"\ntask = "sst2"', "task: sst2 has no pairs of sentences"),
        ("texts = 24", "texts = 1", "texts"),
        ("neighbours = 3", "neighbors = 3", "neighbors"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "sentences.toml"
    path.write_text(find("sentences").read_text().replace(old, new))
    with pytest.raises(UserInputError, match=message):
        run(ReplayOptions(str(path), scale="smoke", out=tmp_path / "out", models=tmp_path / "models"))
    assert not (tmp_path / "models").exists()
