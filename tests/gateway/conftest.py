"""A gateway in this process: all parties on this machine, asked through Starlette's client."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import mpcformer
from parties.gateway.app import build
from parties.gateway.served import ServedModel
from parties.gateway.token_file import Token
from parties.gateway.uploads import Uploads
from tests.engines.test_refused_sentences import with_a_long_word
from tests.tiny import save_student

TOKEN = "a-token-of-the-tests"
MOST_UPLOAD_BYTES = 1 << 20


@dataclass
class Site:
    """A gateway that is asked.

    Attributes:
        model: what it serves.
        uploads: its uploads.
        client: asks with the token.
        stranger: asks without it.
    """

    model: ServedModel
    uploads: Uploads
    client: TestClient
    stranger: TestClient


@pytest.fixture(scope="package")
def picky(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A tiny student; unknown words leave its calibrated range."""
    return with_a_long_word(save_student(tmp_path_factory.mktemp("picky") / "student", data_dir))


@pytest.fixture(scope="package")
def site(picky: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway of that student, with all parties on this machine."""
    with mpcformer.local(picky, first=(1, 16), ahead=1) as classify:
        model = ServedModel("picky", classify, is_local=True)
        uploads = Uploads(tmp_path_factory.mktemp("gateway") / "uploads", {"picky": (classify, None)})
        app = build([model], uploads, Token(TOKEN), MOST_UPLOAD_BYTES)
        base = {"app": app, "base_url": "http://127.0.0.1:8765"}
        shown = {"Authorization": f"Bearer {TOKEN}"}
        with TestClient(**base, headers=shown) as client, TestClient(**base) as stranger:  # type: ignore[arg-type]
            yield Site(model, uploads, client, stranger)
        uploads.close()
