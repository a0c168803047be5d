"""What compares, by keys."""

import mpcformer
from mpcformer import owner

INPUTS = {"x": owner("data", (3, 4)), "y": owner("model", (3, 4))}


def declare(function):
    return mpcformer.program(inputs=INPUTS, reveal={"r": "data"}, comparisons="keys")(function)


@declare
def equal(x, y):
    return {"r": x == y}


@declare
def relu(x, y):
    return {"r": x.relu()}


@declare
def sign(x, y):
    return {"r": x.sign()}


@declare
def absolute(x, y):
    return {"r": x.abs()}


@declare
def largest(x, y):
    return {"r": x.max(dim=1, one_hot=False)[0]}


@declare
def pooled(x, y):
    return {"r": x.unsqueeze(0).max_pool2d(2, stride=1).squeeze(0)}


def _compared(x, y):
    # The results of comparisons are whole numbers at scale 1; 4 x 2^45 is -2^63 in the ring.
    return {"equal": x == y, "different": x != y, "alike": (x > 0) == (y > 0), "edge": (x * 4) == 0}


WHOLE = {"x": owner("data", (5,)), "y": owner("model", (5,))}
TOLD = dict.fromkeys(("equal", "different", "alike", "edge"), "data")


@mpcformer.program(inputs=WHOLE, reveal=TOLD)
def whole(x, y):
    return _compared(x, y)


@mpcformer.program(inputs=WHOLE, reveal=TOLD, comparisons="keys")
def whole_by_keys(x, y):
    return _compared(x, y)


PAIR = {"x": owner("data", (3,)), "y": owner("model", (3,))}


@mpcformer.program(inputs=PAIR, reveal={"above": "data", "same": "data"}, comparisons="keys")
def twice(x, y):
    return {"above": (x > y) + (x > 1), "same": (x == y) * (x == 0)}
