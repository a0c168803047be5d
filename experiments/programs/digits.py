"""A convolutional network on scikit-learn's digits of 8 x 8 pixels, by hand and from a network of torch."""

from typing import Any

import torch

import mpcformer
from mpcformer import owner
from mpcformer.programs import shared_network

N_DIGITS = 100
NETWORK = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(72, 10)
)
INPUTS = {
    "x": owner("data", (N_DIGITS, 1, 8, 8)),
    "kernel": owner("model", (8, 1, 3, 3)),
    "kernel_bias": owner("model", (8,)),
    "weight": owner("model", (10, 72)),
    "bias": owner("model", (10,)),
}


@mpcformer.program(inputs=INPUTS, reveal={"logits": "data"})
def by_hand(x: Any, kernel: Any, kernel_bias: Any, weight: Any, bias: Any) -> dict[str, Any]:
    """Return the logits, with every layer written down."""
    y = (x.conv2d(kernel) + kernel_bias.view(1, 8, 1, 1)).relu().max_pool2d(2).flatten(start_dim=1)
    return {"logits": y @ weight.t() + bias}


@mpcformer.program(inputs=INPUTS, reveal={"logits": "data"})
def by_torch(x: Any, kernel: Any, kernel_bias: Any, weight: Any, bias: Any) -> dict[str, Any]:
    """Return the logits, by CrypTen's `from_pytorch`."""
    parameters = {"0.weight": kernel, "0.bias": kernel_bias, "4.weight": weight, "4.bias": bias}
    model = shared_network(NETWORK, torch.zeros(N_DIGITS, 1, 8, 8), parameters)
    return {"logits": model.eval()(x)}


by_hand_and_keys = mpcformer.program(inputs=INPUTS, reveal={"logits": "data"}, comparisons="keys")(by_hand.function)
