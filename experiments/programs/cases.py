"""The cases: each program with its inputs, and its right results in float64."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# The tensors of a group are in a dictionary of their own.
Arrays = dict[str, Any]
FOLDER = Path(__file__).parent
TEXTS = ["a film that is warm and bright, and never dull", "dull and tired from start to end"]
# A result may be so far from the right one.
MAX_ERROR = 0.003
# Neighbours that are no further apart have no order in fixed-point numbers.
GAP = 0.002


@dataclass(frozen=True)
class Case:
    """A program that is measured.

    Args:
        name: of the program in the owners' files.
        about: what it computes, in words.
        program: FILE:NAME.
        inputs: makes the inputs of both owners.
        right: gives the right results of these inputs.
        classes: gives the true classes of the rows of the result `logits`, if it has one.
        quick: whether it takes a second or so.
    """

    name: str
    about: str
    program: str
    inputs: Callable[[], Arrays]
    right: Callable[[Arrays], Arrays]
    classes: Callable[[], np.ndarray] | None = None
    quick: bool = True

    @property
    def path(self) -> str:
        """FILE:NAME, wherever it is called from."""
        return str(FOLDER / self.program)


def uniform(**shapes: tuple[int, ...]) -> Callable[[], Arrays]:
    """Return what makes inputs of these shapes, uniform in [-1, 1)."""

    def make() -> Arrays:
        generator = np.random.default_rng(0)
        return {name: generator.uniform(-1, 1, shape) for name, shape in shapes.items()}

    return make


def _linear(x: Arrays) -> np.ndarray:
    found: np.ndarray = x["x"] @ x["w"] + x["b"]
    return found


def _argmax(x: Arrays) -> Arrays:
    return {"y": x["x"].argmax(1)}


def _softmax(x: Arrays) -> Arrays:
    return {"y": np.exp(x["x"]) / np.exp(x["x"]).sum(1, keepdims=True)}


def _step(x: Arrays) -> Arrays:
    gradient = 2 / len(x["x"]) * x["x"].T @ (x["x"] @ x["w"] - x["y"])
    return {"w": x["w"] - 0.1 * gradient}


def _neighbours() -> Arrays:
    """Return 100 points whose four nearest neighbours among 1,000 are well apart, so that their order is clear."""
    generator = np.random.default_rng(0)
    known, labels = generator.uniform(-1, 1, (1000, 8)), np.eye(5)[generator.integers(0, 5, 1000)]
    found: list[np.ndarray] = []
    while len(found) < 100:
        x = generator.uniform(-1, 1, 8)
        if np.diff(np.sort(((known - x) ** 2).sum(1))[:4]).min() > GAP:
            found.append(x)
    return {"x": np.stack(found), "known": known, "labels": labels}


def _votes(x: Arrays) -> Arrays:
    distances = ((x["x"][:, None] - x["known"][None]) ** 2).sum(2)
    return {"votes": x["labels"][np.argsort(distances, 1)[:, :3]].sum(1)}


@functools.cache
def _digits() -> tuple[Arrays, np.ndarray]:
    """Train a network on scikit-learn's digits; return the inputs for those that it has not seen, and their classes."""
    from sklearn.datasets import load_digits

    from experiments.programs.digits import N_DIGITS, NETWORK

    digits = load_digits()
    x, y = torch.tensor(digits.images / 16).float().unsqueeze(1), torch.tensor(digits.target)
    held_out = torch.arange(len(y)) % 17 == 0
    held_out[held_out.nonzero()[N_DIGITS:]] = False
    seen = ~held_out
    generator = np.random.default_rng(0)
    for parameter in NETWORK.parameters():
        parameter.data = torch.tensor(generator.normal(0, 0.2, parameter.shape)).float()
    optimizer = torch.optim.Adam(NETWORK.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        F.cross_entropy(NETWORK(x[seen]), y[seen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    names = {"kernel": "0.weight", "kernel_bias": "0.bias", "weight": "4.weight", "bias": "4.bias"}
    weights = {name: NETWORK.state_dict()[key].double().numpy() for name, key in names.items()}
    return {"x": x[held_out].double().numpy()} | weights, y[held_out].numpy()


def _logits(x: Arrays) -> Arrays:
    tensors = {name: torch.tensor(value) for name, value in x.items()}
    y = F.max_pool2d(F.conv2d(tensors["x"], tensors["kernel"], tensors["kernel_bias"]).relu(), 2).flatten(1)
    return {"logits": F.linear(y, tensors["weight"], tensors["bias"]).numpy()}


def _texts() -> Arrays:
    from mpcformer.modeling.folder import first_student
    from mpcformer.programs import bert_parameters, bert_words

    folder = first_student()
    words, _ = bert_words(folder, TEXTS)
    parameters = {name: tensor.numpy() for name, tensor in bert_parameters(folder).items()}
    return {"parameters": parameters, "words": words.numpy()}


def _answers(x: Arrays) -> Arrays:
    """Return the logits of the student in plaintext, none of which is refused."""
    from mpcformer.modeling import load_student
    from mpcformer.modeling.folder import first_student

    student = load_student(first_student())
    words = torch.tensor(x["words"])[:, : student.config.vocab_size].argmax(1).view(len(TEXTS), -1)
    with torch.no_grad():
        logits = student(words, (words != student.config.pad_token_id).long()).logits
    return {"outcome": np.concatenate([logits.numpy(), np.zeros((len(TEXTS), 1))], axis=1)}


REGRESSION = uniform(x=(100, 20), w=(20, 1), b=(1,))
ROWS = uniform(x=(20, 10))
CASES = [
    Case("linear", "linear regression, 100 x 20", "regression.py:linear", REGRESSION, lambda x: {"y": _linear(x)}),
    Case(
        "logistic",
        "logistic regression, 100 x 20",
        "regression.py:logistic",
        REGRESSION,
        lambda x: {"y": 1 / (1 + np.exp(-_linear(x)))},
    ),
    Case(
        "compare",
        "comparison of 1,000",
        "selection.py:compare",
        uniform(x=(1000,), y=(1000,)),
        lambda x: {"z": x["x"] > x["y"]},
    ),
    Case(
        "compare-by-keys",
        "comparison of 1,000, by keys",
        "selection.py:compare_by_keys",
        uniform(x=(1000,), y=(1000,)),
        lambda x: {"z": x["x"] > x["y"]},
    ),
    Case("argmax", "argmax, 20 x 10", "selection.py:argmax", ROWS, _argmax),
    Case("argmax-by-keys", "argmax, 20 x 10, by keys", "selection.py:argmax_by_keys", ROWS, _argmax),
    Case("softmax", "softmax, 20 x 10", "selection.py:softmax", ROWS, _softmax),
    Case("softmax-by-keys", "softmax, 20 x 10, by keys", "selection.py:softmax_by_keys", ROWS, _softmax),
    Case(
        "moments",
        "mean and variance of 3,000",
        "selection.py:moments",
        uniform(x=(3000,)),
        lambda x: {"mean": x["x"].mean(), "variance": x["x"].var(ddof=1)},
    ),
    Case(
        "training-step",
        "training step, 50 x 5",
        "regression.py:training_step",
        uniform(x=(50, 5), y=(50, 1), w=(5, 1)),
        _step,
    ),
    Case(
        "digits-by-hand",
        "CNN by hand, 100 digits",
        "digits.py:by_hand",
        lambda: _digits()[0],
        _logits,
        lambda: _digits()[1],
        quick=False,
    ),
    Case(
        "digits-by-keys",
        "CNN by hand, 100 digits, by keys",
        "digits.py:by_hand_and_keys",
        lambda: _digits()[0],
        _logits,
        lambda: _digits()[1],
        quick=False,
    ),
    Case(
        "digits-by-torch",
        "CNN by from_pytorch, 100 digits",
        "digits.py:by_torch",
        lambda: _digits()[0],
        _logits,
        lambda: _digits()[1],
        quick=False,
    ),
    Case(
        "nearest",
        "3 nearest neighbours of 100 among 1,000",
        "selection.py:nearest",
        _neighbours,
        _votes,
        quick=False,
    ),
    Case("bert", "BERT, 2 x 13 tokens", "bert.py", _texts, _answers, quick=False),
]
