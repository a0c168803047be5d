"""What experiments measure and what they vary: names, units, how a figure is shown, how two runs may differ."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mpcformer.engines.registry import ALIASES
from parties.runs.html_report import FORMS

Kind = Literal["score", "agreement", "error", "seconds", "bytes", "rounds"]
# What a row of results is of. Seeds are one number where a table does not list them; nothing else is.
Axis = Literal[
    "task", "model", "gelu", "softmax", "share", "seed", "engine", "network", "operation", "function", "form"
]
AXES: tuple[Axis, ...] = get_args(Axis)
MIB = 2.0**20


@dataclass(frozen=True)
class Quantity:
    """One measured number.

    Args:
        label: for a table's head and a figure's axis.
        kind: decides the tolerance between two runs.
        unit: as shown; empty for a fraction or a count.
        factor: what the stored number is divided by to be shown in `unit`.
        places: decimals shown.
        largest: several seeds' largest stands for them, not their mean.
    """

    label: str
    kind: Kind
    unit: str = ""
    factor: float = 1.0
    places: int = 4
    largest: bool = False

    @property
    def title(self) -> str:
        """Label with unit."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def shown(self, value: float) -> float:
        """The stored number in the unit it is shown in."""
        return value / self.factor

    def over_seeds(self, numbers: Sequence[float]) -> float:
        """One number for all of them, of which there is at least one."""
        return max(numbers) if self.largest else statistics.fmean(numbers)

    def text(self, value: float) -> str:
        """As a table shows it."""
        shown = self.shown(value)
        return (
            f"{shown:.2e}"
            if self.kind == "error" and 0 < abs(shown) < 10.0**-self.places
            else (f"{shown:,.{self.places}f}")
        )


# Scores are fractions. Online traffic is both ways. An example's seconds and bytes are its batch's over its size.
QUANTITIES: dict[str, Quantity] = {
    "score": Quantity("score, plaintext", "score"),
    "private_score": Quantity("score, private", "score"),
    "kept": Quantity("of the teacher's score", "score"),
    "compared_score": Quantity("score, plaintext, same examples", "score"),
    "label_agreement": Quantity("label agreement", "agreement"),
    # On the training examples set aside, for choosing recipes by: the evaluation split is for nothing but scores.
    "distance": Quantity("distance from the teacher, examples set aside", "error"),
    "max_logit_error": Quantity("largest logit error", "error", largest=True),
    "plaintext_seconds": Quantity("plaintext, median", "seconds", "s/example"),
    "online_seconds": Quantity("online, median", "seconds", "s/example"),
    "offline_seconds": Quantity("offline", "seconds", "s/example"),
    "online_bytes": Quantity("online traffic", "bytes", "MiB/example", MIB, 3),
    "dealer_bytes": Quantity("dealer traffic", "bytes", "MiB/example", MIB, 3),
    "rounds": Quantity("rounds a batch", "rounds", places=0),
    "batch_online_seconds": Quantity("online", "seconds", "s/batch", places=3),
    "batch_offline_seconds": Quantity("offline", "seconds", "s/batch", places=3),
    "setup_seconds": Quantity("set-up", "seconds", "s/session", places=3),
    "batch_online_bytes": Quantity("online traffic", "bytes", "MiB/batch", MIB, 3),
    "batch_dealer_bytes": Quantity("dealer traffic", "bytes", "MiB/batch", MIB, 3),
    "setup_bytes": Quantity("set-up traffic", "bytes", "MiB/session", MIB, 3),
    "operation_seconds": Quantity("online, waiting included", "seconds", "s/batch", places=4),
    "max_error": Quantity("largest error", "error", largest=True),
    "mean_error": Quantity("mean error", "error"),
}


@dataclass(frozen=True)
class Row:
    """One row of results: what it is of, what was measured, and of a trained model what it was made of (see `Kept`)."""

    key: dict[str, str | int | float]
    values: dict[str, float]
    origin: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return {"key": self.key, "values": self.values, **({"origin": self.origin} if self.origin else {})}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Row":
        """Read a row of a results.json; an engine that was recorded by a former name gets its present one."""
        key = dict(value["key"])
        if key.get("engine") in ALIASES:
            key["engine"] = ALIASES[key["engine"]]
        return cls(key, dict(value["values"]), dict(value.get("origin", {})))

    @property
    def name(self) -> str:
        """For a message, and for a file where all characters are plain."""
        return ", ".join(str(value) for value in self.key.values())


def show(value: str | int | float) -> str:
    """A value of an axis for a reader."""
    return f"{value:g}" if isinstance(value, float) else FORMS.get(str(value), str(value))
