"""Ranges for texts unlike the training texts: how such texts are made, how ranges are widened, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from distill.cover import N_WIDENING, SET_ASIDE, Texts, cover
from distill.recipe import TRAINING_TEXTS, DistillRecipe
from distill.start.positions import known_positions, repeat_positions
from distill.student import distill_student
from distill.training.calibrate import calibrate, observed
from distill.training.disturb import KINDS, Vocabulary, disturbed
from distill.training.refusals import refused
from mpcformer.engines.base import BatchShape, PublicModel
from mpcformer.engines.lift.engine import engine_constants
from mpcformer.engines.registry import estimate_batch
from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerForSequenceClassification, load_ranges, load_student, load_tokenizer
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import Encoded, encode, get_task, load_examples
from tests.tiny import TRAINING, WORDS, save_bert, save_parquet, save_student

CLS, SEP, UNK, PAD = 2, 3, 1, 0
PAIR = Encoded([CLS, 5, 6, SEP, 7, SEP], [0, 0, 0, 0, 1, 1])
SINGLE = Encoded([CLS, 5, 6, 9, SEP], [0] * 5)
VOCABULARY = Vocabulary(
    torch.arange(4, len(WORDS)), torch.tensor([8, 10]), torch.tensor([PAD, UNK, CLS, SEP]), frozenset({CLS, SEP})
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return save_student(tmp_path_factory.mktemp("cover") / "student", data_dir)


def texts_of(student: Path, data_dir: Path) -> Texts:
    tokenizer = load_tokenizer(student)
    rows = encode(tokenizer, load_examples(get_task("sst2"), "train", data_dir=data_dir), limits=Limits(32))
    return Texts(rows[:80], rows[80:], Vocabulary.of(tokenizer), PAD, 32)


@pytest.mark.parametrize("template", [SINGLE, PAIR])
def test_disturbed_texts_have_the_columns_and_lengths_of_a_task(template: Encoded) -> None:
    made = disturbed([template], VOCABULARY, n=600, positions=40, seed=0)
    assert {kind: len(rows) for kind, rows in made.items()} == dict.fromkeys(KINDS, 100)
    rows = [row for found in made.values() for row in found]
    lengths = [len(row.input_ids) for row in rows]
    shortest = len(template.input_ids) - (2 if template is SINGLE else 1)
    assert min(lengths) == shortest
    assert 35 < max(lengths) <= 40
    # Lengths are even on a logarithmic scale, so about half lie below the geometric mean of their bounds.
    frame = sum(token in (CLS, SEP) for token in template.input_ids)
    assert 0.35 < sum((length - frame) ** 2 < 40 - frame for length in lengths) / len(rows) < 0.65
    for row in rows:
        assert (row.input_ids[0], row.input_ids[-1]) == (CLS, SEP)
        assert row.token_type_ids == sorted(row.token_type_ids)
        assert set(row.token_type_ids) == set(template.token_type_ids)


def test_each_kind_of_disturbed_text_is_what_its_name_says() -> None:
    made = disturbed([SINGLE, Encoded([CLS, 11, SEP], [0] * 3)], VOCABULARY, n=600, positions=30, seed=0)
    inner = {kind: [row.input_ids[1:-1] for row in rows] for kind, rows in made.items()}
    stream = [5, 6, 9, 11]
    for words in inner["joined"]:
        start = stream.index(words[0])
        assert words == [stream[(start + i) % 4] for i in range(len(words))]
    assert any(set(words) - set(stream) for words in inner["changed"])
    assert all(len(set(words)) <= 3 for words in inner["repeated"])
    assert any(len(set(words)) == 1 and len(words) > 5 for words in inner["repeated"])
    assert {token for words in inner["marks"] for token in words} == {8, 10}
    assert {token for words in inner["any words"] for token in words} == set(range(4, len(WORDS)))
    assert {PAD, UNK, CLS, SEP} < {token for words in inner["special"] for token in words}


def test_the_seed_alone_decides_the_disturbed_texts() -> None:
    first, same, other = (disturbed([SINGLE, PAIR], VOCABULARY, n=60, positions=30, seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert disturbed([Encoded([CLS, SEP], [0, 0])], VOCABULARY, n=60, positions=30, seed=1) == {}


def test_a_tokenizers_marks_are_its_tokens_without_a_letter(student: Path) -> None:
    vocabulary = Vocabulary.of(load_tokenizer(student))
    assert vocabulary.frame == {CLS, SEP}
    assert vocabulary.special.tolist() == [PAD, UNK, CLS, SEP]
    assert vocabulary.words.tolist() == vocabulary.marks.tolist() == list(range(4, len(WORDS)))


def test_later_positions_repeat_those_that_training_texts_reach(student: Path) -> None:
    model = load_student(student)
    table = model.bert.embeddings.position_embeddings.weight
    before = table.detach().clone()
    repeat_positions(model, 5)
    assert torch.equal(table[:5], before[:5])
    assert torch.equal(table[5:], before[[1, 2, 3, 4] * 7][:27])
    for known in (1, 32):
        model = load_student(student)
        repeat_positions(model, known)
        assert torch.equal(model.bert.embeddings.position_embeddings.weight, before)


def test_a_position_is_known_if_enough_texts_reach_it() -> None:
    def texts(*lengths: int) -> list[Encoded]:
        return [Encoded([CLS] * length, [0] * length) for length in lengths]

    assert known_positions(texts(9, 3, 4)) == 9
    assert known_positions(texts(*[9], *[5] * 99)) == 5, "one in a hundred is too few"
    assert known_positions(texts(*[9] * 100, *[5] * 9900)) == 9, "a hundred are enough, however many there are"


def test_widened_ranges_contain_what_was_seen_and_cost_what_is_recorded(student: Path, data_dir: Path) -> None:
    model, texts = load_student(student), texts_of(student, data_dir)
    trained = calibrate(model, texts.training, pad_id=PAD)
    ranges, verdicts, record = cover(model, trained, texts, seed=3)
    assert verdicts["lift"] == "runs"
    assert "joined" in record["kinds"]
    made = disturbed(texts.training, texts.vocabulary, n=N_WIDENING, positions=32, seed=3)
    seen = [trained, *(observed(model, made[kind], pad_id=PAD) for kind in record["kinds"])]
    for name, (low, high) in ranges.bounds.items():
        found = [part.bounds[name] for part in seen if name in part.bounds]
        assert (low, high) == (min(low for low, _ in found), max(high for _, high in found))
    assert ranges.n_examples == len(texts.training) + record["n_texts"]
    costs = [
        estimate_batch("lift", PublicModel(model.config, part), BatchShape(1, record["dealer_bytes"]["tokens"]))
        for part in (trained, ranges)
    ]
    assert [record["dealer_bytes"][key] for key in ("training texts", "widened")] == [c.dealer_bytes for c in costs]
    assert set(record["refused"]) == {SET_ASIDE, *KINDS}
    assert record["refused"][SET_ASIDE] == {"texts": 16, "refused": 0}


def test_ranges_are_not_widened_beyond_what_the_engine_carries(
    student: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = load_student(student), texts_of(student, data_dir)
    trained = calibrate(model, texts.training, pad_id=PAD)

    def wild(*args: object, **kwargs: object) -> object:
        found = observed(*args, **kwargs)  # type: ignore[arg-type]
        return dataclasses.replace(found, bounds=found.bounds | {"layer.1.row_mean": (1e-6, 5000.0)})

    monkeypatch.setattr("distill.cover.observed", wild)
    ranges, verdicts, record = cover(model, trained, texts, seed=3)
    assert (ranges, record["kinds"], record["n_texts"]) == (trained, [], 0)
    assert verdicts["lift"] == "runs"
    monkeypatch.undo()
    monkeypatch.setattr("distill.cover.MOST_BYTES", 0.99)
    assert cover(model, trained, texts, seed=3)[0] == trained


def test_a_text_is_refused_if_a_number_of_it_leaves_the_limits(student: Path, data_dir: Path) -> None:
    model, texts = load_student(student), texts_of(student, data_dir)
    limits = engine_constants(PublicModel(model.config, load_ranges(student))).limits()
    assert set(limits) == {
        "embeddings.variance",
        *(f"layer.{n}.{part}" for n in (0, 1) for part in ("row_mean", "attention.variance", "output.variance")),
    }
    for name, (low, high) in limits.items():
        seen = load_ranges(student).bounds[name]
        assert low <= seen[0] / 1.5 * 1.001
        assert high >= seen[1] * 1.5 * 0.999
    rows = texts.training
    assert not any(refused(model, rows, limits, pad_id=PAD))
    # The means of one text's rows against those of all: narrow limits refuse the others, and only those.
    one = observed(model, rows[:1], pad_id=PAD).bounds["layer.1.row_mean"]
    others = [observed(model, [row], pad_id=PAD).bounds["layer.1.row_mean"] for row in rows]
    expected = [low < one[0] * 0.999 or high > one[1] * 1.001 for low, high in others]
    narrow = {"layer.1.row_mean": (one[0] * 0.999, one[1] * 1.001)}
    assert refused(model, rows, narrow, pad_id=PAD) == expected
    assert True in expected
    assert model.observer is None


def recipe(folder: Path, data_dir: Path, **changes: object) -> DistillRecipe:
    options = {"epochs1": 1, "epochs2": 0, **TRAINING, **changes}
    return DistillRecipe(teacher=folder, data_dir=data_dir, **options)


def test_a_student_for_training_texts_alone_keeps_positions_and_ranges(tmp_path: Path) -> None:
    data, teacher = save_parquet(tmp_path / "data"), save_bert(tmp_path / "teacher")
    made: dict[str, tuple[MPCFormerForSequenceClassification, dict[str, object]]] = {}
    for name, changes in (("wide", {}), ("narrow", {"covers": TRAINING_TEXTS})):
        distill_student(recipe(teacher, data, **changes), tmp_path / name)
        made[name] = load_student(tmp_path / name), json.loads((tmp_path / name / "distillation.json").read_text())
    (wide, said), (narrow, said_narrow) = made["wide"], made["narrow"]
    known = said["coverage"]["known_positions"]  # type: ignore[index]
    assert 2 < known < 32
    tables = [model.bert.embeddings.position_embeddings.weight for model in (wide, narrow)]
    assert torch.equal(tables[0][:known], tables[1][:known])
    assert torch.equal(tables[0][known], tables[0][1])
    assert not torch.equal(tables[1][known], tables[1][1])
    assert load_ranges(tmp_path / "narrow").n_examples == said_narrow["n_training"]
    assert said_narrow["coverage"]["kinds"] == []  # type: ignore[index]
    assert "recorded on the training texts alone" in (tmp_path / "narrow" / "README.md").read_text()
    assert f"texts set aside | {said['n_selection']} |" in (tmp_path / "wide" / "README.md").read_text()


def test_what_a_student_covers_must_be_known(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(UserInputError, match="covers: 'everything' is unknown"):
        distill_student(recipe(save_bert(tmp_path / "teacher"), data_dir, covers="everything"), tmp_path / "student")
