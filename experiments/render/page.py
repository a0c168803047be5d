"""Render report.html of an experiment: one file without scripts that loads nothing and looks like a run's report."""

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from experiments.render.figures import Drawing
from experiments.render.tables import Table
from parties.runs.network import network_profile
from parties.settings.threat_model import threat_model

FILE_NAME = "report.html"


def render(
    values: dict[str, Any], tables: Sequence[Table], drawings: Sequence[Drawing], runs: Sequence[str] = ()
) -> str:
    """Return the report as HTML.

    Args:
        values: the values of results.json.
        tables, drawings: the tables and figures of these values.
        runs: the names of the private runs in the same folder that have a report.
    """
    loader = ChoiceLoader([PackageLoader("experiments", "templates"), PackageLoader("parties", "templates")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = [{"title": d.title, "data": base64.b64encode(d.svg).decode()} for d in drawings]
    ran = any(name.endswith("online_seconds") for row in values["rows"] for name in row["values"])
    return environment.get_template("experiment.html.j2").render(
        values=values,
        tables=tables,
        figures=figures,
        facts=_facts(values),
        runs=runs,
        threat_model=threat_model("private_table") if ran else None,
    )


def _facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and texts of the facts: the scale's settings, the data, the machine."""
    settings = dict(values["settings"])
    if "networks" in settings:
        settings["networks"] = [_network(name) for name in settings["networks"]]
    facts = [(_name(key), _text(value)) for key, value in settings.items() if value is not None]
    facts += [
        (f"Examples, {task}", ", ".join(f"{key} {_short(value)}" for key, value in what.items()))
        for task, what in values["examples"].items()
    ]
    for chosen in values["teachers"]:
        tried = ", ".join(f"{row['selection_score']:.4f} at {row['learning_rate']:g}" for row in chosen["grid"])
        what = f"rate {chosen['learning_rate']:g}, by its score on the examples set aside: {tried}"
        facts.append((f"Teacher, {chosen['task']}, seed {chosen['seed']}", what))
    if values["n_kept"]:
        reused = f"{values['n_kept']} of {len(values['rows'])}, of the same models, measured alike by an earlier replay"
        facts.append(("Reused rows", reused))
    environment = values["environment"]
    facts.append(("Machine", f"{environment['cpus']} CPUs, trained on {environment['training_device']}"))
    facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items())))
    return facts


def _name(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _network(name: str) -> str:
    """Return the network's name with its round-trip time and rate if it has them."""
    if (profile := network_profile(name)) is None:
        return f"{name} (loopback interface)"
    return f"{name} ({profile.rtt_s * 1e3:g} ms round trip, {profile.bytes_s * 8 / 1e6:g} Mbit/s each way)"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_text(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(value: Any) -> str:
    """Return the value as text; a digest is shortened to its first 12 digits."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else f"{value}"
