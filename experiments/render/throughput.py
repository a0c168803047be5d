"""The figure and the tables of the record that experiments/measuring/throughput.py writes."""

from typing import Any

from matplotlib.figure import Figure

from experiments.render.figures import DASHES, MARKERS, Drawing, finished
from experiments.render.tables import Table

TITLE = "Sentences a second by sessions on one machine, and by machines"
WIDE = (8.4, 3.8)
TITLES = {"dealer": "dealer", "model-owner": "model owner", "data-owner": "data owner"}


def draw_throughput(record: dict[str, Any]) -> Drawing:
    """Return the figure: on the left what was measured beside the model, on the right the model's fleets."""

    def fill(figure: Figure) -> None:
        here, there = figure.subplots(1, 2)
        for rows, label, style in (
            (record["sessions"], "measured", "-"),
            (record["modelled"], "model: an upper bound", "--"),
        ):
            points = [(row["sessions"], row["sentences_per_second"]) for row in rows]
            here.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=label)
        here.set_xticks([row["sessions"] for row in record["sessions"]])
        here.set_ylim(bottom=0)
        here.set_xlabel(f"sessions, all parties on {record['cores']} cores")
        here.set_ylabel("sentences a second")
        here.legend(loc="lower right")
        for number, name in enumerate(_networks(record)):
            points = [(row["machines"], row["sentences_per_second"]) for row in _of(record, name)]
            style = DASHES[number % len(DASHES)]
            there.plot(*zip(*points, strict=True), marker=MARKERS[number], linestyle=style, label=f"model: {name}")
        there.set_xscale("log", base=2)
        there.set_yscale("log")
        machines = [row["machines"] for row in _of(record, _networks(record)[0])]
        there.set_xticks(machines, [str(n) for n in machines])
        there.set_xlabel(f"machines of {record['cores']} cores, dealers and model owners")
        there.legend()

    return finished("throughput", TITLE, fill, WIDE)


def throughput_tables(record: dict[str, Any]) -> dict[str, Table]:
    """Return the tables by name: the parts of a batch, the sessions of one machine, and the fleets."""
    batch = record["batch"]
    shape = f"{batch['sentences']} x {batch['tokens']} tokens of {record['model']}"
    parties = list(TITLES)
    parts = [
        ["processor seconds, offline", *(f"{batch['offline_cpu_s'][party]:.2f}" for party in parties)],
        ["processor seconds, online", *(f"{batch['online_cpu_s'][party]:.2f}" for party in parties)],
    ]
    sessions = [
        [str(row["sessions"]), f"{row['sentences_per_second']:.2f}", f"{model['sentences_per_second']:.2f}"]
        for row, model in zip(record["sessions"], record["modelled"], strict=True)
    ]
    fleets = [
        [
            row["network"].upper(),
            str(row["machines"]),
            f"{row['dealers']} and {row['machines'] - row['dealers']}",
            f"{row['sentences_per_second']:.1f}",
            row["bound"],
        ]
        for name in _networks(record)
        for row in _of(record, name)
    ]
    heads = {
        "parts": (f"One batch, {shape}", ["measured", *TITLES.values()], parts),
        "sessions": (
            f"All parties on one machine of {record['cores']} cores",
            ["sessions", "measured [sentences/s]", "model [sentences/s]"],
            sessions,
        ),
        "machines": (
            f"Fleets of machines of {record['cores']} cores, by the model",
            ["network", "machines", "dealers and model owners", "sentences/s", "what bounds it"],
            fleets,
        ),
    }
    return {name: Table(name, title, head, lines, lines, 1) for name, (title, head, lines) in heads.items()}


def _networks(record: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["network"] for row in record["machines"]))


def _of(record: dict[str, Any], network: str) -> list[dict[str, Any]]:
    return [row for row in record["machines"] if row["network"] == network]
