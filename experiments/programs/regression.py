"""Linear and logistic regression of 100 x 20, and a training step of 50 x 5."""

from typing import Any

import mpcformer
from mpcformer import owner

INPUTS = {"x": owner("data", (100, 20)), "w": owner("model", (20, 1)), "b": owner("model", (1,))}


@mpcformer.program(inputs=INPUTS, reveal={"y": "data"})
def linear(x: Any, w: Any, b: Any) -> dict[str, Any]:
    """Return x w + b."""
    return {"y": x @ w + b}


@mpcformer.program(inputs=INPUTS, reveal={"y": "data"})
def logistic(x: Any, w: Any, b: Any) -> dict[str, Any]:
    """Return the probabilities of a logistic regression."""
    return {"y": (x @ w + b).sigmoid()}


@mpcformer.program(
    inputs={"x": owner("data", (50, 5)), "y": owner("data", (50, 1)), "w": owner("model", (5, 1))},
    reveal={"w": "model"},
)
def training_step(x: Any, y: Any, w: Any) -> dict[str, Any]:
    """Return the weights of a linear regression after one step of gradient descent."""
    w.requires_grad = True
    loss = (x @ w - y).square().mean()
    loss.backward()
    return {"w": w - w.grad * 0.1}
