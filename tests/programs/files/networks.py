"""A convolutional network by hand and by `from_pytorch`."""

import torch

import mpcformer
from mpcformer import owner
from mpcformer.programs import shared_network

NETWORK = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 10)
)
INPUTS = {
    "x": owner("data", (2, 1, 8, 8)),
    "kernel": owner("model", (4, 1, 3, 3)),
    "kernel_bias": owner("model", (4,)),
    "weight": owner("model", (10, 36)),
    "bias": owner("model", (10,)),
}


@mpcformer.program(inputs=INPUTS, reveal={"logits": "data"})
def by_hand(x, kernel, kernel_bias, weight, bias):
    y = (x.conv2d(kernel) + kernel_bias.view(1, 4, 1, 1)).relu().max_pool2d(2).flatten(start_dim=1)
    return {"logits": y @ weight.t() + bias}


@mpcformer.program(inputs=INPUTS, reveal={"logits": "data"})
def by_torch(x, kernel, kernel_bias, weight, bias):
    parameters = {"0.weight": kernel, "0.bias": kernel_bias, "4.weight": weight, "4.bias": bias}
    model = shared_network(NETWORK, torch.zeros(2, 1, 8, 8), parameters)
    return {"logits": model.eval()(x)}
