"""Comparison of 1,000, argmax and softmax of 20 x 10, mean and variance of 3,000, and nearest neighbours."""

from typing import Any

import mpcformer
from mpcformer import owner

# What a neighbour that was found is moved away by, so that it is not found again.
FAR = 1000
NEIGHBOURS = 3


@mpcformer.program(inputs={"x": owner("data", (1000,)), "y": owner("model", (1000,))}, reveal={"z": "both"})
def compare(x: Any, y: Any) -> dict[str, Any]:
    """Return where x is larger."""
    return {"z": x > y}


@mpcformer.program(inputs={"x": owner("data", (20, 10))}, reveal={"y": "data"})
def argmax(x: Any) -> dict[str, Any]:
    """Return the place of each row's largest number."""
    return {"y": x.argmax(dim=1, one_hot=False)}


@mpcformer.program(inputs={"x": owner("data", (20, 10))}, reveal={"y": "data"})
def softmax(x: Any) -> dict[str, Any]:
    """Return each row's softmax."""
    return {"y": x.softmax(dim=1)}


# The same with comparisons by keys.
compare_by_keys = mpcformer.program(inputs=compare.inputs, reveal=compare.reveal, comparisons="keys")(compare.function)
argmax_by_keys = mpcformer.program(inputs=argmax.inputs, reveal=argmax.reveal, comparisons="keys")(argmax.function)
softmax_by_keys = mpcformer.program(inputs=softmax.inputs, reveal=softmax.reveal, comparisons="keys")(softmax.function)


@mpcformer.program(inputs={"x": owner("data", (3000,))}, reveal={"mean": "model", "variance": "model"})
def moments(x: Any) -> dict[str, Any]:
    """Return mean and variance."""
    return {"mean": x.mean(), "variance": x.var()}


@mpcformer.program(
    inputs={"x": owner("data", (100, 8)), "known": owner("model", (1000, 8)), "labels": owner("model", (1000, 5))},
    reveal={"votes": "data"},
)
def nearest(x: Any, known: Any, labels: Any) -> dict[str, Any]:
    """Return how many of the three nearest neighbours of each row of x have each label; labels are one-hot."""
    # The length of x changes no order.
    closeness = 2 * (x @ known.t()) - (known * known).sum(dim=1).unsqueeze(0)
    found = closeness.argmax(dim=1)
    votes = found @ labels
    for _ in range(NEIGHBOURS - 1):
        closeness = closeness - found * FAR
        found = closeness.argmax(dim=1)
        votes = votes + found @ labels
    return {"votes": votes}
