"""BERT as a program: the same pass as the engine's, with the same plan, and the plaintext student's logits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.engines.registry import create_engine
from mpcformer.errors import UserInputError
from mpcformer.modeling import load_student
from mpcformer.programs import bert_parameters, bert_program, bert_words, dry_run, load_program
from tests.pair import play

TEXTS = ["the day was fine and warm", "a dull stone", "it was cold"]


@pytest.fixture
def file(student: Path, tmp_path: Path) -> Path:
    """A program's file that names the student of the tests."""
    _, lengths = bert_words(student, TEXTS)
    text = "from pathlib import Path\nfrom mpcformer.programs import bert_program\n"
    (tmp_path / "bert.py").write_text(f"{text}bert = bert_program(Path({str(student)!r}), {lengths})\n")
    return tmp_path / "bert.py"


def test_its_outcome_is_the_plaintext_students_and_its_plan_the_engines(student: Path, file: Path) -> None:
    loaded = load_program(file)
    words, lengths = bert_words(student, TEXTS)
    parameters = {f"parameters.{name}": tensor for name, tensor in bert_parameters(student).items()}
    results, plan, states = play(loaded, {**parameters, "words": words.long()})
    assert results[0] == {}
    outcome = results[1]["outcome"]
    assert outcome.shape == (3, 3)
    assert not outcome[:, -1].any(), "no text was refused"
    model = load_student(student)
    ids = words[:, : model.config.vocab_size].argmax(1).view(len(TEXTS), -1)
    with torch.no_grad():
        expected = model(ids, (torch.arange(ids.size(1)) < torch.tensor(lengths)[:, None]).long()).logits
    assert float((outcome[:, :-1] - expected).abs().max()) <= 0.003

    engine = create_engine("crypten", rank=1, public=load_public_model(student), channel=None)
    shape = BatchShape(*ids.shape)
    assert [plan.requests] == engine.plan(shape)
    assert plan.rounds == engine.cost(shape).rounds
    assert [state.store.next_operation for state in states] == [len(plan.requests)] * 2


def test_shapes_alone_give_the_same_plan(file: Path) -> None:
    loaded = load_program(file)
    shapes = dry_run(loaded, on_shapes=True)
    assert (shapes.how, shapes.digest) == ("shapes", dry_run(loaded, on_shapes=False).digest)


def test_a_text_beyond_the_ranges_is_refused_in_its_row_alone(student: Path, file: Path) -> None:
    """The embedding of one word is a thousand times too large."""
    loaded = load_program(file)
    words, _ = bert_words(student, TEXTS)
    parameters = bert_parameters(student)
    longest = int(words[:, : load_public_model(student).config.vocab_size].argmax(1)[2])
    assert TEXTS[0].split()[1] == "day", "a word of the first text alone"
    parameters["embeddings.words_and_types"][longest] *= 1000
    named = {f"parameters.{name}": tensor for name, tensor in parameters.items()}
    outcome = play(loaded, {**named, "words": words.long()})[0][1]["outcome"]
    assert outcome[:, -1].tolist() == [1.0, 0.0, 0.0]
    assert outcome[0, :-1].tolist() == [0.0, 0.0]
    assert bool((outcome[1:, :-1] != 0).all())


def test_what_both_owners_must_agree_on(student: Path) -> None:
    first, other = (bert_program(student, lengths).agreed for lengths in ([5, 4], [5, 3]))
    assert first["model"] == other["model"]
    assert first["lengths"] != other["lengths"]


@pytest.mark.parametrize("lengths", [[], [0], [3, 1000]])
def test_lengths_of_no_text_are_refused(student: Path, lengths: list[int]) -> None:
    with pytest.raises(UserInputError, match="are not the lengths of texts"):
        bert_program(student, lengths)
    with pytest.raises(UserInputError, match="the longest text has 202 tokens"):
        bert_words(student, ["warm " * 200])


def test_the_words_are_unit_vectors_of_whole_numbers(student: Path) -> None:
    words, lengths = bert_words(student, TEXTS)
    assert words.shape[0] == len(TEXTS) * max(lengths)
    assert np.array_equal(np.unique(words.numpy()), [0, 1])
    assert bool((words.sum(1) == 2).all()), "a word and a token type"
