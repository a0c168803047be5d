"""Render report.html, the report for people: one file without scripts that loads nothing, made from results.json."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from mpcformer.approximations import gelu_form, softmax_form
from parties.runs.published import SOURCE, PublishedScore, published_scores

FILE_NAME = "report.html"
DASH = "\N{EN DASH}"
MODELS = (("teacher", "Teacher", "plaintext"), ("student", "Student", "plaintext"), ("private", "Student", "private"))
PHASES = (("setup", "Set-up"), ("offline", "Offline"), ("online", "Online"))
PARTIES = ("data-owner", "model-owner", "dealer")
METRICS = {"f1": "F1", "matthews": "Matthews correlation"} | {
    name: f"{name.title()} correlation" for name in ("pearson", "spearman")
}
BAR_STEP, MOST_TICKS = 44, 5
T = TypeVar("T")


def render(values: dict[str, Any]) -> str:
    """Return the report as HTML.

    Args:
        values: the value of results.json. If "insecure" is true or a text, the report starts with a banner.
    """
    loader = PackageLoader("parties", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "score": _or_dash(lambda value: f"{value:.4f}"),
        "error": _or_dash(lambda value: f"{value:.5f}"),
        "percent": _or_dash(lambda value: f"{value:.2%}"),
        "seconds": _or_dash(seconds),
        "size": _or_dash(size),
        "count": _or_dash(lambda value: f"{value:,}"),
        "gelu": lambda name: gelu_form(name).title,
        "softmax": lambda name: softmax_form(name).title,
        "metric": metric_name,
        "name": lambda text: str(text)[:1].upper() + str(text)[1:].replace("-", " "),
    }
    insecure = values.get("insecure")
    return environment.get_template("run.html.j2").render(
        values=values,
        insecure="No promise of the threat model holds for this run." if insecure is True else insecure,
        dash=DASH,
        absent=_absent(values),
        ties=_ties(values),
        models=MODELS,
        phases=PHASES,
        facts=_facts(values),
        latency=values["plaintext"]["seconds_per_example"] | {"private": values["online"]["seconds_per_example"]},
        traffic=_traffic(values),
        chart=bar_chart(values["online"]["breakdown_seconds"]),
        published=_published(values),
        source=SOURCE,
    )


def seconds(value: float) -> str:
    """Return a time with about four significant digits or, where it is long, in whole seconds."""
    n_decimals = 4 if value < 1 else 2 if value < 100 else 1 if value < 10_000 else 0
    return f"{value:,.{n_decimals}f} s"


def size(n_bytes: float) -> str:
    """Return a number of bytes in the binary unit that leaves at most four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def metric_name(key: str) -> str:
    """Return the name of a metric for people, for example `Accuracy, matched` for accuracy_matched."""
    name, _, split = key.partition("_")
    return METRICS.get(name, name.capitalize()) + (f", {split}" if split else "")


def bar_chart(amounts: dict[str, float]) -> dict[str, Any]:
    """Return the geometry of a horizontal bar chart with the longest bar first.

    Widths are percentages, because then the text keeps its size on every screen; heights are pixels.

    Args:
        amounts: the lengths of the bars by name, none of them negative.
    """
    longest = max(amounts.values(), default=0.0) or 1.0
    power: float = 10.0 ** math.floor(math.log10(longest))
    step = next(s * p for p in (power / 10, power) for s in (1, 2, 5) if longest / (s * p) <= MOST_TICKS)
    n_ticks = math.ceil(longest / step - 1e-9)
    end = n_ticks * step
    bars = [
        {"name": name, "amount": amount, "width": f"{100 * amount / end:.2f}%", "y": BAR_STEP * i}
        for i, (name, amount) in enumerate(sorted(amounts.items(), key=lambda item: -item[1]))
    ]
    ticks = [{"text": f"{i * step:g}", "x": f"{100 * i / n_ticks:.2f}%"} for i in range(n_ticks + 1)]
    return {"bars": bars, "ticks": ticks, "height": BAR_STEP * len(bars)}


def _or_dash(text: Callable[[T], str]) -> Callable[[T | None], str]:
    """Return a function that also accepts None and returns a dash for it, which the report explains."""
    return lambda value: DASH if value is None else text(value)


def _absent(values: dict[str, Any]) -> str | None:
    """Return why figures of the teacher or the student are missing, or None if all are there."""
    if values["student"] is None:
        return "the coordinator has neither the models nor the text, so nothing ran in plaintext to compare with."
    return "the run was given no teacher." if values["metrics"]["teacher"] is None else None


def _ties(values: dict[str, Any]) -> str | None:
    """Return what the report says of predictions that chance may decide, or None where there are no classes."""
    told = values.get("ties")
    if not told:
        return None
    text = (
        f"{told['predictions']:,} of {values['examples']:,} predictions: their two largest logits differ by less than"
    )
    text += f" {told['within']}, so that another run may decide otherwise. Label agreement leaves them out"
    return text if told["agreeing"] is None else f"{text}; on {told['agreeing']:,} of them the two students agree"


def _facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the names and the texts of the section `What was computed`."""
    student, network, seeds = values["student"], values["network"], values["seeds"]
    link = ""
    if "rtt_ms" in network:
        link = f", {network['rtt_ms']:g} ms round trip, {network['mbit_s']:g} Mbit/s each way"
    deployed = f"{DASH} (each party's own configuration)"
    if student:
        model = f"BERT, {student['layers']} layers, hidden size {student['hidden']}"
        forms = f"GeLU: {gelu_form(student['gelu']).title}; softmax: {softmax_form(student['softmax']).title}"
        digest = student["sha256"]
    else:
        model = forms = digest = f"{DASH} (the coordinator has no student)"
    return [
        ("Task", values["task"]),
        ("Split", ", ".join(values["split"])),
        ("Examples", f"{values['examples']:,}, in batches of {values['batch_size']}"),
        ("Model", model),
        ("Forms", forms),
        ("Weights, SHA-256", digest),
        ("Engine", values["engine"]),
        ("Embeddings", values["embeddings"]),
        ("Network", f"{network['profile']}{link}; {network['transport']}"),
        ("Device", values.get("device", deployed)),
        ("Threads per party", str(values.get("threads_per_party", deployed))),
        ("Training seed", f"{DASH} (not recorded)" if seeds["training"] is None else str(seeds["training"])),
        ("Protocol seeds", seeds["protocol"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in values["versions"].items())),
    ]


def _traffic(values: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes by phase and direction, and by party. None stands where nothing is counted."""
    by_phase = {label: values[phase]["bytes"] for phase, label in PHASES}
    directions = list(dict.fromkeys(direction for label in reversed(by_phase) for direction in by_phase[label]))
    total = {direction: sum(sizes.get(direction, 0) for sizes in by_phase.values()) for direction in directions}

    def of_party(party: str, end: int) -> int | None:
        """Return all bytes that a party sent (end 0) or received (end 1)."""
        return sum(n for direction, n in total.items() if direction.split("->")[end] == party) or None

    return {
        "directions": [direction.split("->") for direction in directions],
        "phases": [(label, [sizes.get(d) for d in directions]) for label, sizes in by_phase.items()],
        "total": list(total.values()),
        "parties": [(party, of_party(party, 0), of_party(party, 1)) for party in PARTIES],
        "online_per_example": sum(values["online"]["bytes"].values()) / values["examples"],
    }


def _published(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the paper's scores and those of this run as table rows, or None if the paper has no scores to compare."""
    scores = published_scores(values["task"], values["split"])
    if not scores:
        return None
    theirs: list[tuple[str, Callable[[PublishedScore], float | None]]] = [
        ("Teacher", lambda score: score.teacher),
        ("Student, Quad + 2ReLU", lambda score: score.quad_2relu),
        ("Student, Quad + 2Quad", lambda score: score.quad_2quad),
    ]

    def ours(model: str, score: PublishedScore) -> float | None:
        """Return the score of this run that means the same as the paper's."""
        metrics, keys = values["metrics"][model], score.keys(values["split"])
        return sum(metrics[key] for key in keys) / len(keys) if metrics else None

    return {
        "metrics": [score.metric for score in scores],
        "theirs": [(label, [get(score) for score in scores]) for label, get in theirs],
        "ours": [(f"{label}, {where}", [ours(model, score) for score in scores]) for model, label, where in MODELS],
        "incomplete": any(score.quad_2relu is None for score in scores),
    }
