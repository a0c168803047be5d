"""report.html of a real run and of other values: it shows everything, loads nothing, and clips nothing."""

import copy
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from mpcformer.approximations import GELU_FORMS, SOFTMAX_FORMS
from mpcformer.errors import UserInputError
from mpcformer.files import sha256_file
from parties.runs import local_run, report
from parties.runs.html_report import DASH, bar_chart, render, seconds, size
from parties.runs.published import PUBLISHED, published_scores
from tests.browser import check_page
from tests.parties.test_end_to_end import job_for


@pytest.fixture(scope="module")
def run(student: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    local_run.run(job_for(student, data_dir), out)
    return out


@pytest.fixture
def values(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "results.json").read_text()))


@pytest.fixture
def of_coordinator(values: dict[str, Any]) -> dict[str, Any]:
    """Return what a coordinator knows of the same run."""
    for local in ("device", "threads_per_party", "label_agreement_tolerance"):
        del values[local]
    values["metrics"] |= {"teacher": None, "student": None}
    values["seeds"]["training"] = None
    return values | {
        "student": None,
        "label_agreement": None,
        "max_abs_logit_error": None,
        "plaintext": {"seconds_per_example": {}},
        "network": {"profile": "as deployed", "transport": "gRPC over mutual TLS"},
    }


def text_of(html: str) -> str:
    """Return what a reader sees, with white space collapsed."""
    body = html.partition("<body>")[2]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def cells(html: str, section: str) -> dict[str, list[str]]:
    """Return the table rows of a section by their header, without the exact bytes below a size."""
    part = html.partition(f'<h2 id="{section}">')[2].partition("</section>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', part, re.DOTALL)
    return {name: re.findall(r"<td[^>]*>([^<]*)", row) for name, row in rows}


def test_the_folder_holds_it_and_the_manifest_lists_it(run: Path, values: dict[str, Any]) -> None:
    html = (run / "report.html").read_text()
    assert html == render(values)
    listed = json.loads((run / "manifest.json").read_text())["sha256"]
    assert listed["report.html"] == sha256_file(run / "report.html")


def test_the_terminals_last_line_names_it(
    run: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report.show(values, run)
    *_, before, last = capsys.readouterr().out.splitlines()
    assert before == f"Everything is in {run} (results.json, predictions.parquet, logs/)."
    assert last.endswith(str(run / "report.html"))


def test_every_number_appears(values: dict[str, Any]) -> None:
    values["metrics"] = {
        "teacher": {"accuracy": 0.91, "f1": 0.92},
        "student": {"accuracy": 0.81, "f1": 0.82},
        "private": {"accuracy": 0.71, "f1": 0.72},
    }
    values["label_agreement"] = 0.975
    html = render(values)
    assert cells(html, "accuracy") == {"Accuracy": ["0.9100", "0.8100", "0.7100"], "F1": ["0.9200", "0.8200", "0.7200"]}
    latency = values["plaintext"]["seconds_per_example"] | {"private": values["online"]["seconds_per_example"]}
    for key, label in (("median", "Median"), ("p95", "95th percentile")):
        expected = [f"{latency[model][key]:.4f}" for model in ("teacher", "student", "private")]
        assert cells(html, "latency")[label] == expected
    text = text_of(html)
    shown = ["97.50%", f"{values['max_abs_logit_error']:.5f}", f"{values['online']['rounds_per_batch']}, online"]
    for phase in ("online", "offline", "setup"):
        shown.append(seconds(values[phase]["seconds"]))
        shown += [size(n) for n in values[phase]["bytes"].values()]
        shown += [f"{n:,} B" for n in values[phase]["bytes"].values() if n >= 1024]
    shown += [seconds(s) for s in values["online"]["breakdown_seconds"].values()]
    shown += [size(n) for n in values["peak_rss_bytes"].values()]
    shown += [f"{name} {version}" for name, version in values["versions"].items()]
    shown += [values["student"]["sha256"], "12, in batches of 5", "2 layers, hidden size 32", "Quad", "2Quad"]
    shown += [values[key] for key in ("task", "engine", "embeddings", "device", "bytes_are")]
    shown += [values["network"]["transport"], values["seeds"]["protocol"], "a local simulation"]
    shown += [part for promise in values["threat_model"].values() for part in promise.split("; ")]
    assert not [item for item in shown if str(item) not in text]


def test_bytes_add_up_by_direction_and_by_party(values: dict[str, Any]) -> None:
    to_data_owner, to_model_owner, dealt = "model-owner->data-owner", "data-owner->model-owner", "dealer->model-owner"
    values["setup"]["bytes"] = {to_model_owner: 200, to_data_owner: 100}
    values["offline"]["bytes"] = {dealt: 1000, to_model_owner: 10, to_data_owner: 20}
    values["online"]["bytes"] = {to_data_owner: 3, to_model_owner: 4}
    rows = cells(render(values), "traffic")
    assert rows["Set-up"] == ["100 B", "200 B", DASH]
    assert rows["All"] == ["123 B", "214 B", "1000 B"]
    assert rows["Data owner"] == ["214 B", "123 B"]
    assert rows["Model owner"] == ["123 B", "1.2 KiB"]
    assert rows["Dealer"] == ["1000 B", DASH]


def test_a_shaped_network_and_a_tolerance_are_shown(values: dict[str, Any]) -> None:
    values["network"] |= {"profile": "wan", "rtt_ms": 40.0, "mbit_s": 100.0}
    values["label_agreement_tolerance"] = 0.05
    text = text_of(render(values))
    assert "wan, 40 ms round trip, 100 Mbit/s each way; gRPC over mutual TLS" in text
    assert "differ by less than 0.05" in text


def test_nothing_is_loaded_and_nothing_runs(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert not re.search(r"url\(|@import|<script|<link|<img|<iframe|\son\w+=", html)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {"#threats"}
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "path",
    [("task",), ("engine",), ("insecure",), ("student", "gelu"), ("student", "sha256"), ("threat_model", "leaks")],
)
def test_text_is_escaped(values: dict[str, Any], path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # A report prints the title of a form that is registered, and refuses any other.
    script = '<script>alert("x")</script>'
    monkeypatch.setitem(GELU_FORMS, script, replace(GELU_FORMS["quad"], name=script, title=script))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = script
    values["online"]["breakdown_seconds"]["<script>"] = 1.0
    html = render(values)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html


@pytest.mark.parametrize("kind", ["gelu", "softmax"])
def test_an_unknown_form_is_refused(values: dict[str, Any], kind: str) -> None:
    values["student"][kind] = '<script>alert("x")</script>'
    with pytest.raises(UserInputError, match=r"script.* is unknown"):
        render(values)


@pytest.mark.parametrize("name", SOFTMAX_FORMS)
def test_every_form_has_a_title(values: dict[str, Any], name: str) -> None:
    values["student"]["softmax"] = name
    assert f"GeLU: Quad; softmax: {SOFTMAX_FORMS[name].title}" in text_of(render(values))


def test_a_dash_and_why_where_the_coordinator_knows_nothing(of_coordinator: dict[str, Any]) -> None:
    private = of_coordinator["metrics"]["private"]["accuracy"]
    html = render(of_coordinator)
    assert cells(html, "accuracy") == {"Accuracy": [DASH, DASH, f"{private:.4f}"]}
    assert cells(html, "latency")["Median"][:2] == [DASH, DASH]
    text = text_of(html)
    assert "None" not in text
    assert f"{DASH} : the coordinator has neither the models nor the text" in text
    assert f"{DASH} (the coordinator has no student)" in text
    assert f"{DASH} (each party's own configuration)" in text
    assert "local simulation" not in text


def test_a_dash_and_why_without_a_teacher(values: dict[str, Any]) -> None:
    values["metrics"]["teacher"] = None
    del values["plaintext"]["seconds_per_example"]["teacher"]
    html = render(values)
    assert cells(html, "accuracy")["Accuracy"][0] == cells(html, "latency")["Median"][0] == DASH
    assert f"{DASH} : the run was given no teacher." in text_of(html)


def test_no_dash_is_explained_that_is_not_there(values: dict[str, Any]) -> None:
    text = text_of(render(values))
    assert "no teacher" not in text
    assert "the coordinator has" not in text


@pytest.mark.parametrize(
    ("insecure", "text"), [("the links were in clear", "the links were in clear"), (True, "No promise")]
)
def test_the_insecure_banner_is_on_top(values: dict[str, Any], insecure: object, text: str) -> None:
    html = render(values | {"insecure": insecure})
    assert text_of(html).startswith(f"INSECURE {text}")
    assert "<title>INSECURE: " in html


@pytest.mark.parametrize("insecure", [{}, {"insecure": False}, {"insecure": ""}])
def test_no_banner_on_a_secure_run(values: dict[str, Any], insecure: dict[str, Any]) -> None:
    assert "INSECURE" not in render(values | insecure)


def test_the_published_figures_stand_beside_ours(values: dict[str, Any]) -> None:
    values["metrics"]["private"] = {"accuracy": 0.5432}
    html = render(values)
    rows = cells(html, "published")
    assert rows["Teacher"] == ["0.931"]
    assert rows["Student, Quad + 2ReLU"] == rows["Student, Quad + 2Quad"] == ["0.920"]
    assert rows["Student, private"] == ["0.5432"]
    text = text_of(html)
    assert "Published: MPCFormer, ICLR 2023, BERT-base, plaintext" in text
    assert "measured in plaintext on BERT-base" in text


def test_published_figures_of_two_splits_two_metrics_and_a_missing_form(of_coordinator: dict[str, Any]) -> None:
    def rows(task: str, split: list[str], **private: float) -> dict[str, list[str]]:
        changed = copy.deepcopy(of_coordinator) | {"task": task, "split": split}
        changed["metrics"]["private"] = private
        return cells(render(changed), "published")

    both = ["validation_matched", "validation_mismatched"]
    mnli = rows("mnli", both, accuracy_matched=0.7, accuracy_mismatched=0.6)
    assert mnli["Teacher"] == ["0.847", "0.850"]
    assert mnli["Student, private"] == ["0.7000", "0.6000"]
    assert mnli["Student, plaintext"] == [DASH, DASH]
    assert rows("mnli", both[1:], accuracy=0.6)["Student, private"] == ["0.6000"]
    assert rows("stsb", ["validation"], pearson=0.8, spearman=0.7)["Student, private"] == ["0.7500"]
    assert rows("imdb", ["test"], accuracy=0.9)["Student, Quad + 2ReLU"] == [DASH]
    assert rows("movie-sentiment", ["validation"], accuracy=0.9) == {}
    assert rows("sst2", ["train"], accuracy=0.9) == {}, "the paper has no score on the training set"


def test_published_keys_are_the_tasks_own_metrics() -> None:
    from mpcformer.tasks import get_task

    for name, scores in PUBLISHED.items():
        task = get_task(name)
        assert published_scores(name, task.eval_splits) == scores
        assert all(set(score.names) <= set(task.metrics) for score in scores)
        assert all(0.5 < score.quad_2quad <= score.teacher + 0.01 for score in scores)


def test_tables_have_captions_and_scopes_and_the_chart_a_name(run: Path) -> None:
    html = (run / "report.html").read_text()
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables) >= 6
    assert all("<caption>" in table for table in tables)
    assert not re.search(r"<th(?! scope=|ead)", html)
    assert re.search(r'<svg[^>]*role="img" aria-labelledby="chart-title chart-desc"', html)
    assert '<title id="chart-title">' in html
    assert '<desc id="chart-desc">' in html
    assert 'name="viewport"' in html


@pytest.mark.parametrize("longest", [0.0, 0.0301, 0.3, 1.0, 9.9, 48.2, 20_000.0])
def test_the_chart_fits_its_axis(longest: float) -> None:
    chart = bar_chart({"a": longest / 3, "b": longest, "c": 0.0})
    widths = [float(bar["width"].rstrip("%")) for bar in chart["bars"]]
    ticks = [float(tick["text"]) for tick in chart["ticks"]]
    assert chart["bars"][0]["name"] == ("b" if longest else "a")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(100 * longest / ticks[-1], abs=0.01)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] >= longest


def test_an_engine_without_a_breakdown_is_an_empty_chart() -> None:
    assert bar_chart({})["bars"] == []


def test_a_browser_renders_it(run: Path, tmp_path: Path) -> None:
    check_page(run / "report.html", tmp_path, "Where the online time goes", "Threat model")


def test_a_browser_clips_nothing_of_a_large_run(values: dict[str, Any], tmp_path: Path) -> None:
    online = values["online"]
    for phase in ("setup", "offline", "online"):
        values[phase]["seconds"] = 234_567.8
        values[phase]["bytes"] = dict.fromkeys(values[phase]["bytes"], 987_654_321_098_765)
    online["breakdown_seconds"] = dict.fromkeys(online["breakdown_seconds"], 234_567.8)
    for party in online["by_party"]:
        online["by_party"][party] = {
            "seconds": online["breakdown_seconds"],
            "waited": dict.fromkeys(online["breakdown_seconds"], 112_233.4),
        }
    values["examples"] = 1_234_567
    (tmp_path / "report.html").write_text(render(values | {"insecure": "INSECURE " * 40}))
    check_page(tmp_path / "report.html", tmp_path, "898.3 TiB", "234,568 s")


def test_work_and_waiting_are_told_apart_by_party(values: dict[str, Any]) -> None:
    values["online"]["breakdown_seconds"] = {"linear": 3.0, "norm": 1.0}
    values["online"]["by_party"] = {
        "data-owner": {"seconds": {"linear": 3.0, "norm": 1.0}, "waited": {"linear": 2.5, "norm": 0.25}},
        "model-owner": {"seconds": {"linear": 3.0, "norm": 1.0}, "waited": {"linear": 0.125}},
    }
    rows = cells(render(values), "breakdown")
    assert rows["Linear"] == ["0.5000 s", "2.50 s", "2.88 s", "0.1250 s"]
    assert rows["Norm"] == ["0.7500 s", "0.2500 s", "1.00 s", "0.0000 s"]
    assert rows["All"] == ["1.25 s", "2.75 s", "3.88 s", "0.1250 s"]


def test_a_run_measures_both_owners(values: dict[str, Any]) -> None:
    online = values["online"]
    assert online["by_party"]["data-owner"]["seconds"] == online["breakdown_seconds"]
    # The model owner may wait for the data owner, which waits for what is dealt and counts that as offline.
    most = {"data-owner": online["seconds"], "model-owner": online["seconds"] + values["offline"]["seconds"]}
    assert set(online["by_party"]) == set(most)
    for party, spent in online["by_party"].items():
        assert set(spent["seconds"]) == set(spent["waited"]) == set(online["breakdown_seconds"])
        assert all(0 <= spent["waited"][name] <= seconds for name, seconds in spent["seconds"].items())
        assert 0 < sum(spent["waited"].values()) < sum(spent["seconds"].values()) <= 1.01 * most[party]
