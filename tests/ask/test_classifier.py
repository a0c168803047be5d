"""Tests of private answers in the manner of a pipeline, with all parties on this machine."""

import asyncio
import gc
import os
import pydoc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pytest
import torch

import mpcformer
from mpcformer.engines.base import BatchShape
from mpcformer.engines.plaintext import predict
from mpcformer.errors import MPCFormerError, PartyError, UserInputError
from mpcformer.modeling import load_student, load_tokenizer
from mpcformer.modeling.folder import first_student
from mpcformer.tasks import Encoded
from parties.ask.classifier import OUT_OF_RANGE, Classifier

TEXTS = ["the day was fine", "a cold and grim stone", "warm", "it was rather dull and very cold", "", "lovely river"]


def plaintext(student: Path, texts: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what the student answers in plaintext."""
    tokenizer, model = load_tokenizer(student), load_student(student)
    rows = [tokenizer(*(text if isinstance(text, tuple) else (text,)), return_token_type_ids=True) for text in texts]
    encoded = [Encoded(row["input_ids"], row["token_type_ids"]) for row in rows]
    logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=1)
    scores = torch.tensor(logits).softmax(1)
    names = ("negative", "positive")  # of the task, for the tiny student has no names of its own
    return [{"label": names[int(row.argmax())], "score": float(row.max())} for row in scores]


def same(answers: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Assert that answers are those of the plaintext student."""
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([e["score"] for e in expected], abs=0.002)


def test_one_text_and_several(classify: Classifier, picky: Path) -> None:
    same(classify(TEXTS[0]), plaintext(picky, TEXTS[:1]))  # type: ignore[arg-type]
    found = classify(TEXTS, batch_size=4)
    assert isinstance(found, list)
    same(found, plaintext(picky, TEXTS))


def test_no_student_stands_for_the_one_of_the_package() -> None:
    texts = ["a wonderful film", "zzz", "", "a terrible film " * 40]
    with mpcformer.local(first=(4, 128)) as classify:
        found = classify(texts)
    assert isinstance(found, list)
    same(found, plaintext(first_student(), texts))


def test_pairs_generators_and_columns(classify: Classifier, picky: Path) -> None:
    pair = ("the day was fine", "a grim stone")
    expected = plaintext(picky, [pair])
    same(classify(pair), expected)  # type: ignore[arg-type]
    same(classify({"text": pair[0], "text_pair": pair[1]}), expected)  # type: ignore[arg-type]
    lazy = classify(text for text in TEXTS[:2])
    assert isinstance(lazy, Iterator)
    same(list(lazy), plaintext(picky, TEXTS[:2]))
    column = datasets.Dataset.from_dict({"text": TEXTS[:3]})["text"]
    same(classify(column), plaintext(picky, TEXTS[:3]))  # type: ignore[arg-type]
    assert classify([]) == []


def test_a_refused_text_is_refused_alone(classify: Classifier, picky: Path) -> None:
    texts = ["the day was fine", "a day of zinc", "warm"]
    found = list(classify(texts))
    assert found[1] == {"label": None, "score": None, "refused": True, "reason": OUT_OF_RANGE}
    same([found[0], found[2]], plaintext(picky, [texts[0], texts[2]]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "a\x00b",
        ".",
        "!?;:",
        "x",
        "\u00e4\u00f6",
        "\U0001f600 \U0001f525",
        "日本語のテキスト",
        "مرحبا",
        bytes(range(256)).decode("latin-1"),
        "fine " * 2500,
        "\ud800",
    ],
    ids=repr,
)
def test_any_text_is_answered_or_refused(classify: Classifier, text: str) -> None:
    (answer,) = list(classify(text))
    if answer["label"] is None:
        assert answer["refused"]
        assert answer["reason"]
    same(list(classify("warm")), list(classify("warm")))


@pytest.mark.parametrize("value", [5, None, b"warm", ["a", "b", "c"], {"txt": "warm"}])
def test_what_is_no_text_is_named(classify: Classifier, value: Any) -> None:
    with pytest.raises(UserInputError, match=r"text 1: .* is neither a text nor a pair"):
        list(classify(["warm", value]))


@pytest.mark.parametrize("value", ["warm", {"text": "warm"}])
def test_one_text_is_not_taken_for_many(classify: Classifier, value: Any) -> None:
    with pytest.raises(UserInputError, match="answers: one text was given"):
        next(classify.answers(value))


def test_details_and_batches_that_wait(classify: Classifier) -> None:
    classify("warm")
    deadline = time.monotonic() + 20
    while True:  # the stock is dealt while nobody asks; until then, one that is longer may be used
        (answer,) = list(classify("warm", details=True))
        if (answer["dealt_ahead"] and answer["batch"] == [1, 16]) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert answer["dealt_ahead"]
    assert answer["batch"] == [1, 16]
    assert len(answer["logits"]) == 2
    assert answer["rounds"] > 20
    assert answer["bytes"] > 10_000
    assert 0 < answer["online_seconds"] <= answer["seconds"]


def test_threads_take_turns_and_a_loop_is_not_blocked(classify: Classifier, picky: Path) -> None:
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: list(classify(TEXTS[i]))}))  # type: ignore[misc]
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    same([found[i][0] for i in range(4)], plaintext(picky, TEXTS[:4]))

    async def ask() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(classify.acall(TEXTS[0]), classify.acall(TEXTS[1]))

    same([answers[0] for answers in asyncio.run(ask())], plaintext(picky, TEXTS[:2]))


def test_the_callers_threads_stay_as_they_are(classify: Classifier) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        classify("warm")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_deal_and_leave(picky: Path) -> None:
    with mpcformer.local(picky, first=(1, 16), deal_ahead=2) as classify:
        texts = ["the day was fine", "warm"]
        with pytest.raises(UserInputError, match="no batch of 1 x 32 tokens waits; what waits: 2 of 1 x 16"):
            classify("cold " * 20)
        same([next(iter(classify(text, details=True))) for text in texts], plaintext(picky, texts))
        with pytest.raises(UserInputError, match="the dealer has left, and no batch of 1 x 16 tokens waits"):
            classify("cold")
    with mpcformer.local(picky, first=(1, 20), deal_ahead=1) as classify:  # a length that is none of the usual ones
        same(list(classify("cold " * 15)), plaintext(picky, ["cold " * 15]))
    with pytest.raises(UserInputError, match=r"deal_ahead: .* the pool has 1 MiB"):
        mpcformer.local(picky, first=(1, 16), deal_ahead=500, pool_mib=1).open()


def test_nothing_is_asked_in_a_session_that_the_dealer_did_not_leave(picky: Path) -> None:
    with unopened(picky, first=(1, 16), deal_ahead=500, pool_mib=1) as classify:
        for _ in range(2):
            with pytest.raises(UserInputError, match=r"deal_ahead: .* the pool has 1 MiB"):
                classify("warm")
            assert classify._session is None


def test_each_batch_brings_an_answer_that_is_kept(picky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a budget could be used up again and again by batches of later texts, and no answer be given."""
    texts = ["cold " * 20, *["warm"] * 8]
    batches: list[int] = []

    def one_batch(self: Classifier, texts: Sequence[Encoded], shape: BatchShape, *flags: bool) -> list[Any]:
        batches.append(shape.seq_len)
        if len(batches) > 1:
            raise mpcformer.BudgetError("model-owner", 60)
        return [{"label": "positive", "score": 1.0} for _ in texts]

    monkeypatch.setattr(Classifier, "_batch", one_batch)
    with unopened(picky, first=(1, 16)) as classify:
        monkeypatch.setattr(classify, "_opened", lambda: Mock())
        found = classify.answers(texts)
        assert next(found)["label"] == "positive"
        with pytest.raises(mpcformer.BudgetError):
            next(found)
    assert batches == [32, 16]


@contextmanager
def unopened(student: Path, **options: Any) -> Iterator[Classifier]:
    """A classifier whose session the first call opens."""
    classify = mpcformer.local(student, **options)
    try:
        yield classify
    finally:
        classify.close()


def test_a_party_that_dies_is_named_and_the_parties_end(picky: Path) -> None:
    classify = mpcformer.local(picky, ahead=0, first=(1, 16)).open()
    found = classify._on_close.peek()
    assert found is not None
    site: Any = found[1].__self__  # type: ignore[attr-defined]
    running = site._processes.running
    try:
        classify("warm")
        os.kill(running["dealer"].pid, signal.SIGKILL)
        with pytest.raises(PartyError, match="dealer: its connection ended"):
            classify(["cold"] * 3, batch_size=1)
        with pytest.raises(PartyError, match="dealer"):
            classify("cold")
    finally:
        classify.close()
    assert all(process.poll() is not None for process in running.values())
    assert not site.folder.exists()
    with pytest.raises(UserInputError, match="this classifier is closed"):
        classify("warm")


def test_a_classifier_that_is_forgotten_leaves_no_party(picky: Path) -> None:
    classify = mpcformer.local(picky)
    found = classify._on_close.peek()
    assert found is not None
    running = found[1].__self__._processes.running  # type: ignore[attr-defined]
    del classify, found
    gc.collect()
    assert all(process.poll() is not None for process in running.values())


def n_threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_session_whose_classifier_is_forgotten_ends(classify: Classifier) -> None:
    classify("warm")
    before = n_threads("orderer"), n_threads("pool")
    another = Classifier(classify._config, classify._options)
    another("warm")
    assert n_threads("orderer") > before[0]
    del another
    gc.collect()
    until(lambda: (n_threads("orderer"), n_threads("pool")) == before)


def test_a_session_that_does_not_begin_leaves_no_thread(classify: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    classify("warm")
    before = threading.active_count()
    another = Classifier(classify._config, classify._options)
    monkeypatch.setattr(another, "_student", "0" * 64)
    for _ in range(3):
        with pytest.raises(MPCFormerError, match="the owners disagree on: student"):
            another("warm")
    until(lambda: threading.active_count() <= before)


def test_a_session_that_ended_is_followed_by_another(picky: Path) -> None:
    with mpcformer.local(picky, ahead=0, first=(1, 16)) as classify:
        classify("warm")
        session = classify._session
        assert session is not None
        session._membership.abort(PartyError("data-owner", "a test ended it"))
        time.sleep(0.1)
        same(list(classify("warm")), plaintext(picky, ["warm"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 7}, r"max_length: 7 is outside 8\.\.32"),
        ({"batch_size": 0}, "batch_size: 0 is outside"),
        ({"first": (0, 16)}, "first, texts: 0 is outside"),
        ({"engine": "spdz"}, "'spdz' is unknown"),
        ({"threads": 0}, "threads: 0 is below 1"),
        ({"device": "tpu"}, "tpu"),
        ({"lengths": (0,)}, "lengths: 0 is below 1"),
    ],
)
def test_wrong_options_start_nothing(picky: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MPCFormerError, match=message):
        mpcformer.local(picky, **options)


def test_a_folder_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="is not a folder"):
        mpcformer.local(tmp_path / "nowhere")


def test_help_shows_what_matters() -> None:
    page = pydoc.render_doc(mpcformer, renderer=pydoc.plaintext)
    for name in ("local(", "connect(", "class Classifier", "BudgetError", "MPCFormerError"):
        assert name in page
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mpcformer.nothing
