"""The nearest neighbour, and public factors."""

import torch

import mpcformer
from mpcformer import owner


@mpcformer.program(
    inputs={"x": owner("data", (10, 4)), "known": owner("model", (32, 4)), "labels": owner("model", (32,))},
    reveal={"label": "data"},
)
def nearest(x, known, labels):
    distances = (known * known).sum(dim=1).unsqueeze(0) - 2 * (x @ known.t())
    return {"label": distances.argmin(dim=1) @ labels}


@mpcformer.program(inputs={"x": owner("data", (2,)), "y": owner("model", (2,))}, reveal={"y": "data", "x": "model"})
def scaled(x, y):
    return {"x": x * torch.tensor([0.3, 3.0]), "y": y / 7}


LAYER = owner("model", {"weight": (3, 2), "bias.of.it": (2,)})
COUNTS = owner("data", (4, 3), whole=True)


@mpcformer.program(inputs={"layer": LAYER, "counts": COUNTS}, reveal={"y": "data", "twice": "data"})
def grouped(layer, counts):
    return {"y": counts @ layer["weight"] + layer["bias.of.it"], "twice": counts * 2}
