"""Classes are matched by name, whatever their order and spelling; labels may be missing, but not some of them."""

import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpcformer.errors import UserInputError
from mpcformer.modeling import MPCFormerConfig
from mpcformer.tasks import OwnData, class_order, get_task, load_examples, load_own, own_task, with_metrics
from mpcformer.tasks.labels import are_default, default_names, matches, model_names
from mpcformer.tasks.own import described, file_classes, load_job


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["pos", "neg"], ["negative", "positive"], [1, 0]),
        (["POSITIVE", "Negative"], ["neg", "pos"], [1, 0]),
        (["not-entailment", "entailment"], ["entailment", "not_entailment"], [1, 0]),
        (["Not Equivalent"], ["not_equivalent", "equivalent"], [0]),
        (["ham", "positive"], ["negative", "positive"], [None, 1]),
        (["a b"], ["a_b", "a-b"], [None]),
        (["a_b"], ["a_b", "a-b"], [0]),
    ],
)
def test_names_match(theirs: list[str], ours: list[str], expected: list[int | None]) -> None:
    assert matches(theirs, ours) == expected


def test_default_names() -> None:
    assert are_default(default_names(3))
    assert are_default(("0", "1"))
    assert not are_default(("LABEL_1", "LABEL_0"))
    config = MPCFormerConfig(num_labels=2)
    assert model_names(config) == ("LABEL_0", "LABEL_1")
    assert model_names(MPCFormerConfig(num_labels=1)) == ()


def test_the_outputs_of_a_model_in_the_order_of_a_task() -> None:
    mnli = get_task("mnli")  # entailment neutral contradiction
    assert class_order(("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), mnli, "--teacher") == [2, 1, 0]
    assert class_order(("contradiction", "entailment", "neutral"), mnli, "--teacher") == [1, 2, 0]
    assert class_order(mnli.labels, mnli, "--teacher") is None
    assert class_order(("LABEL_0", "LABEL_1", "LABEL_2"), mnli, "--teacher") is None
    with pytest.raises(UserInputError, match="--teacher: the model's classes are ham, spam; those") as caught:
        class_order(("ham", "spam"), get_task("sst2"), "--teacher")
    assert "id2label" in caught.value.remedy


def named_parquet(folder: Path, names: list[str], labels: list[int], column: str = "sentence") -> Path:
    features = datasets.Features({column: datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    table = {column: [f"text {n}" for n in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / "validation-0.parquet"))
    return folder


def test_a_file_whose_classes_have_another_order(tmp_path: Path) -> None:
    named_parquet(tmp_path, ["positive", "negative"], [0, 0, 1])
    assert load_examples(get_task("sst2"), "validation", data_dir=tmp_path).labels == [1, 1, 0]


def test_a_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    named_parquet(tmp_path, ["ham", "spam"], [0, 1])
    with pytest.raises(UserInputError, match="classes are ham, spam; those of task sst2 are neg") as caught:
        load_examples(get_task("sst2"), "validation", data_dir=tmp_path)
    assert "--data" in caught.value.remedy


def test_classes_written_as_names(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence": ["a", "b"], "label": ["Pos", "neg"]}), tmp_path / "train.parquet")
    assert load_examples(get_task("sst2"), "train", data_dir=tmp_path).labels == [1, 0]
    table = pa.table({"sentence": ["a", "b"] * 2, "label": ["ham", "spam"] * 2})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserInputError, match="classes are ham, spam; those of task sst2 are") as caught:
        load_examples(get_task("sst2"), "train", data_dir=tmp_path)
    assert "ham" not in caught.value.told, "other parties are not told what the data hold"


@pytest.mark.parametrize("labels", [None, [-1, -1], [None, None], [math.nan, math.nan], ["", ""]])
def test_labels_may_be_missing(tmp_path: Path, labels: list[Any] | None) -> None:
    columns: dict[str, list[Any]] = {"sentence": ["a", "b"]} | ({"label": labels} if labels else {})
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    examples = load_examples(get_task("sst2"), "train", data_dir=tmp_path, labelled=False)
    assert len(examples) == 2
    assert not examples.has_labels
    with pytest.raises(UserInputError):
        load_examples(get_task("sst2"), "train", data_dir=tmp_path)


def test_some_missing_labels_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sentence": ["a", "b"], "label": [1, -1]}), tmp_path / "train.parquet")
    with pytest.raises(UserInputError, match="row 1: the label is missing, and other rows have one"):
        load_examples(get_task("sst2"), "train", data_dir=tmp_path, labelled=False)


def csv(folder: Path, text: str) -> OwnData:
    (folder / "own.csv").write_text(text)
    return OwnData(folder / "own.csv")


@pytest.mark.parametrize(
    ("cells", "names", "expected"),
    [
        ("1 0", ("LABEL_0", "LABEL_1"), [1, 0]),
        ("1 0", ("ham", "spam"), [1, 0]),
        ("LABEL_1 LABEL_0", ("LABEL_0", "LABEL_1"), [1, 0]),
        ("Spam HAM", ("ham", "spam"), [1, 0]),
        ("5 1", ("1", "2", "3", "4", "5"), [4, 0]),
        ("1.0 0.0", ("ham", "spam"), [1, 0]),
        ("-1 2.5", (), [-1.0, 2.5]),
    ],
)
def test_labels_of_a_csv(tmp_path: Path, cells: str, names: tuple[str, ...], expected: list[float]) -> None:
    own = csv(tmp_path, "text,label\n" + "".join(f"t,{cell}\n" for cell in cells.split()))
    assert load_own(own, own_task(names)).labels == expected


def test_labels_of_own_data_that_do_not_fit(tmp_path: Path) -> None:
    own = csv(tmp_path, "text,label\n" + "t,junk\nt,ham\n" * 2)
    with pytest.raises(UserInputError, match="classes are ham, junk; those of the model are ham, spam") as caught:
        load_own(own, own_task(("ham", "spam")))
    assert "id2label" in caught.value.remedy
    own = csv(tmp_path, "text,label\nt,2\n")
    with pytest.raises(UserInputError, match=r"row 0: label 2 is outside the model's 0\.\.1"):
        load_own(own, own_task(("ham", "spam")))
    own = csv(tmp_path, "text\nt\n")
    with pytest.raises(UserInputError, match="no column of labels"):
        load_own(own, own_task(("ham", "spam")))
    assert not load_own(own, own_task(("ham", "spam")), labelled=False).has_labels


def test_the_column_of_labels(tmp_path: Path) -> None:
    own = csv(tmp_path, "text,mine,label\nt,1,0\n")
    task = own_task(("ham", "spam"))
    assert load_own(own, task).labels == [0]
    assert load_own(OwnData(own.path, label_column="mine"), task).labels == [1]
    assert not load_own(OwnData(own.path, label_column=""), task, labelled=False).has_labels
    with pytest.raises(UserInputError, match="no column 'text' beside its columns of text; it has mine, label"):
        load_own(OwnData(own.path, label_column="text"), task)


def test_which_columns_are_read_is_told(tmp_path: Path) -> None:
    own = csv(tmp_path, "question1,question2,class\na,b,0\n")
    assert described(own) == f"{own.path}: texts in question1 and question2 (guessed), labels in class (guessed)"
    assert load_own(own, own_task(("no", "yes"))).texts == [("a", "b")]
    told = described(OwnData(own.path, ("question2",), ""))
    assert told == f"{own.path}: texts in question2, no labels"


def test_names_of_a_file_stand_in_for_those_that_a_model_lacks(tmp_path: Path) -> None:
    own = OwnData(named_parquet(tmp_path, ["ham", "spam"], [0, 1], "text") / "validation-0.parquet")
    without, reverse = MPCFormerConfig(num_labels=2), MPCFormerConfig(id2label={0: "spam", 1: "ham"})
    assert load_job("own-data", "eval", without, "--student", own=own).task.labels == ("ham", "spam")
    data = load_job("own-data", "eval", reverse, "--student", own=own)
    assert (data.task.labels, data.examples.labels, data.order) == (("spam", "ham"), [1, 0], None)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [("spam ham spam", ("ham", "spam")), ("0 2 1", ("LABEL_0", "LABEL_1", "LABEL_2")), ("1 2.5", ()), ("1e-3 2", ())],
)
def test_the_classes_of_a_file(tmp_path: Path, cells: str, expected: tuple[str, ...]) -> None:
    assert file_classes(csv(tmp_path, "text,label\n" + "".join(f"t,{c}\n" for c in cells.split()))) == expected


@pytest.mark.parametrize(
    ("cells", "what"),
    [("1 2", "not numbered 0, 1"), ("0 0", "not numbered"), ("ham ham", "1 different names"), ('ham ""', "missing")],
)
def test_labels_that_are_no_classes(tmp_path: Path, cells: str, what: str) -> None:
    with pytest.raises(UserInputError, match=what):
        file_classes(csv(tmp_path, "text,label\n" + "".join(f"t,{c}\n" for c in cells.split())))


def test_metrics_fit_the_kind_of_task() -> None:
    two, three, number = own_task(("a", "b")), own_task(("a", "b", "c")), own_task(())
    assert (two.metrics, three.metrics, number.metrics) == (("accuracy", "f1"), ("accuracy",), ("pearson", "spearman"))
    assert with_metrics(two, ["matthews"]).metrics == ("matthews",)
    assert with_metrics(get_task("sst2"), []).metrics == ("accuracy",)
    for task, metric in ((three, "f1"), (number, "accuracy"), (two, "pearson"), (two, "bleu")):
        with pytest.raises(UserInputError, match=f"--metrics: '{metric}'"):
            with_metrics(task, [metric])
