"""Linear and logistic regression of 100 x 20."""

import mpcformer
from mpcformer import owner

INPUTS = {"x": owner("data", (100, 20)), "w": owner("model", (20, 1)), "b": owner("model", (1,))}


@mpcformer.program(inputs=INPUTS, reveal={"y": "data"})
def linear(x, w, b):
    return {"y": x @ w + b}


@mpcformer.program(inputs=INPUTS, reveal={"y": "data"})
def logistic(x, w, b):
    return {"y": (x @ w + b).sigmoid()}
