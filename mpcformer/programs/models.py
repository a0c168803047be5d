"""Networks of torch in programs: the architecture is public and in the program's file, its parameters are an input."""

from collections.abc import Mapping
from typing import Any

import torch

from mpcformer.engines.crypten.compat import crypten
from mpcformer.errors import UserInputError


def shared_network(network: torch.nn.Module, example: torch.Tensor, parameters: Mapping[str, Any]) -> Any:
    """Return a network as CrypTen's module, with shared parameters in the place of its own.

    Args:
        network: its architecture; the values of its parameters are not used.
        example: a tensor of the shape of its input, such as zeros.
        parameters: shared tensors, by the names of the network's `state_dict()`, and of the same shapes.

    Raises:
        UserInputError: a parameter is missing, unknown or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in network.named_parameters()}
    given = {name: tuple(value.size()) for name, value in parameters.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        raise UserInputError(
            f"shared_network: {wrong[0]} has the shape {given.get(wrong[0])}, the network's is {own.get(wrong[0])}",
            f"give the parameters {', '.join(own)}",
        )
    model = crypten.nn.from_pytorch(network, example)
    for name, module in model.named_modules():
        if name in parameters:
            module.set_parameter("data", parameters[name])
        module.encrypted = True
    return model
