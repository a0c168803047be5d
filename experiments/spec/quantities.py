"""The quantities that experiments measure and the axes that they vary: names, units and display."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mpcformer.engines.registry import ALIASES

Kind = Literal["score", "agreement", "error", "seconds", "bytes", "rounds"]
# The axes that tell rows apart. A table that does not list the seeds combines them into one number; it must list every
# other axis that varies.
Axis = Literal[
    "task", "model", "gelu", "softmax", "share", "seed", "engine", "network", "operation", "function", "form"
]
AXES: tuple[Axis, ...] = get_args(Axis)
MIB = 2.0**20


@dataclass(frozen=True)
class Quantity:
    """A kind of measured number.

    Args:
        label: the text in a table's head and at a figure's axis.
        kind: the kind that decides the tolerance between two runs.
        unit: the unit that is shown; empty for a fraction or a count.
        factor: the number by which a stored value is divided to be shown in `unit`.
        places: the number of decimals that are shown.
        largest: whether the largest value of several seeds is shown in place of their mean.
    """

    label: str
    kind: Kind
    unit: str = ""
    factor: float = 1.0
    places: int = 4
    largest: bool = False

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def shown(self, value: float) -> float:
        """Return a stored number in the unit in which it is shown."""
        return value / self.factor

    def over_seeds(self, numbers: Sequence[float]) -> float:
        """Return one number for the numbers of all seeds; there must be at least one."""
        return max(numbers) if self.largest else statistics.fmean(numbers)

    def text(self, value: float) -> str:
        """Return the text that a table shows for a stored number."""
        shown = self.shown(value)
        return (
            f"{shown:.2e}"
            if self.kind == "error" and 0 < abs(shown) < 10.0**-self.places
            else (f"{shown:,.{self.places}f}")
        )


# Scores are fractions. Online traffic counts both directions. The seconds and bytes of an example are those of its
# batch divided by the batch size.
QUANTITIES: dict[str, Quantity] = {
    "score": Quantity("score, plaintext", "score"),
    "private_score": Quantity("score, private", "score"),
    "score_share": Quantity("share of the teacher's score", "score"),
    "compared_score": Quantity("score, plaintext, same examples", "score"),
    "label_agreement": Quantity("label agreement", "agreement"),
    # Recipes are chosen by this distance. It uses training examples set aside, because the evaluation split is used for
    # nothing but scores.
    "distance": Quantity("distance from the teacher, examples set aside", "error"),
    "answered": Quantity("share answered", "agreement"),
    "least_cosine": Quantity("least cosine, private and plaintext", "agreement", places=6),
    "recall": Quantity("nearest neighbours that are the same", "agreement"),
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
# Earlier names of quantities, which older records and experiment files use.
RENAMED = {"kept": "score_share"}


@dataclass(frozen=True)
class Row:
    """One row of results.

    Args:
        key: the point on each axis that the row belongs to.
        values: the measured numbers by the name of their quantity.
        origin: for a trained model, the hashes of what the model was made of and of how it was measured; see
            `experiments.records.reuse`.
    """

    key: dict[str, str | int | float]
    values: dict[str, float]
    origin: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the row as results.json stores it."""
        return {"key": self.key, "values": self.values, **({"origin": self.origin} if self.origin else {})}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Row":
        """Return a row as results.json stores it; earlier names of quantities and engines are replaced by today's."""
        key = dict(value["key"])
        if key.get("engine") in ALIASES:
            key["engine"] = ALIASES[key["engine"]]
        values = {RENAMED.get(name, name): number for name, number in value["values"].items()}
        return cls(key, values, dict(value.get("origin", {})))

    @property
    def name(self) -> str:
        """The points of the row as text, for a message."""
        return ", ".join(str(value) for value in self.key.values())

    @property
    def identity(self) -> tuple[tuple[str, str | int | float], ...]:
        """The key, sorted by axis, so that rows can be compared whatever the order of their axes."""
        return tuple(sorted(self.key.items()))
