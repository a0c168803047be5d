"""The alerts, the dashboard and the runbook agree with each other and with the metrics that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from parties.gateway import counts
from parties.settings import metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "parties" / "deploy" / "monitoring"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
NAME = re.compile(r"\bmpcformer_\w+")
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed; Debian has it in the package prometheus"
)


def alerts() -> list[dict[str, Any]]:
    """Return all alerts."""
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    """Return all panels of the dashboard that are no heading."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Return what the dashboard asks, with the values that Grafana puts in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [each.replace("$__rate_interval", "5m").replace("$party", ".*") for each in found]


def exposed(registry: CollectorRegistry) -> Iterator[str]:
    """Yield the names under which Prometheus sees the metrics of a registry."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    for family in registry.collect():
        yield from (family.name + ending for ending in endings[family.type])


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_alerts_and_dashboard_use_metrics_that_exist_and_all_of_them() -> None:
    known = {*exposed(metrics.REGISTRY), *exposed(counts.REGISTRY)}
    shown = {name for each in expressions() for name in NAME.findall(each)}
    alarming = {name for alert in alerts() for name in NAME.findall(alert["expr"])}
    tested = set(NAME.findall((MONITORING / "alerts-test.yaml").read_text()))
    assert (shown | alarming | tested) - known == set()
    # Sum and count of a histogram are in its quantiles.
    assert {name for name in known if not name.endswith(("_sum", "_count"))} - shown == set()
    assert alarming <= tested


def test_each_alert_has_a_severity_a_sentence_and_an_entry_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["annotations"]["summary"].endswith((".", "connect."))
    for entry in RUNBOOK.split("\n## ")[1:]:
        assert re.findall(r"^\*\*(\w+)\.\*\*", entry, re.MULTILINE) == ["Means", "Look", "Do"], entry[:40]


def test_labels_in_the_files_are_those_of_the_metrics() -> None:
    known = {"party", "instance", "job", "le"}
    for module in (metrics, counts):
        for each in vars(module).values():
            known |= set(getattr(each, "_labelnames", ()))
    text = "\n".join([*expressions(), *(alert["expr"] for alert in alerts())])
    used = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", text))
    used |= {label for inner in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for label in inner.split(", ")}
    assert used - known == set()
    scraped = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert all("party" in each["labels"] for job in scraped for each in job["static_configs"])
    assert all(re.fullmatch("mpcformer.*", job["job_name"]) for job in scraped)


def test_the_dashboard_has_no_panel_on_another() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    assert {each["name"] for each in dashboard["templating"]["list"]} == {"source", "party"}


def test_the_ports_are_those_of_the_example_files() -> None:
    targets = re.findall(r"127\.0\.0\.1:\d+", (MONITORING / "prometheus.yaml").read_text())
    files = "".join(path.read_text() for path in (ROOT / "parties" / "deploy" / "two-machines").glob("*.toml"))
    assert targets == [*sorted(re.findall(r'metrics = "([^"]+)"', files)), "127.0.0.1:8765"]


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    checked = promtool("check", "rules", MONITORING / "alerts.yaml")
    assert checked.returncode == 0, checked.stderr
    for name in ("alerts.yaml", "alerts-test.yaml", "prometheus.yaml"):
        shutil.copy(MONITORING / name, tmp_path)
    tested = promtool("test", "rules", tmp_path / "alerts-test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    config = promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yaml")
    assert config.returncode == 0, config.stdout + config.stderr
    # Each of the tests can fail: an alert that never fires is noticed.
    for alert in alerts():
        rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
        (broken,) = (each for each in rules["groups"][0]["rules"] if each["alert"] == alert["alert"])
        broken["expr"] = f"({broken['expr']}) and absent(up) and vector(0) > 1"
        (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
        assert promtool("test", "rules", tmp_path / "alerts-test.yaml").returncode != 0, alert["alert"]


@needs_promtool
def test_the_dashboard_asks_in_prometheus_language(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "rules.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout
