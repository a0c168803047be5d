"""Comparison, argmax, softmax, mean and variance, the nearest neighbour, and public factors."""

import torch

import mpcformer
from mpcformer import owner


@mpcformer.program(inputs={"x": owner("data", (1000,)), "y": owner("model", (1000,))}, reveal={"z": "both"})
def compare(x, y):
    return {"z": x > y}


@mpcformer.program(inputs={"x": owner("data", (20, 10))}, reveal={"y": "data"})
def argmax(x):
    return {"y": x.argmax(dim=1, one_hot=False)}


@mpcformer.program(inputs={"x": owner("data", (20, 10))}, reveal={"y": "data"})
def softmax(x):
    return {"y": x.softmax(dim=1)}


@mpcformer.program(inputs={"x": owner("data", (3000,))}, reveal={"mean": "model", "variance": "model"})
def moments(x):
    return {"mean": x.mean(), "variance": x.var()}


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
