"""What a program on CrypTen's tensors declares: its inputs, with owner and shape, and who learns its results.

Nothing here loads torch or CrypTen. `mpcformer.programs` checks the declarations that users write.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The ranks of the owners by the words of a declaration.
RANKS = {"model": 0, "data": 1}
BOTH = "both"
# Between the name of a group of inputs and that of a tensor in it.
POINT = "."


@dataclass(frozen=True)
class Input:
    """An input of a program.

    Args:
        owner: who puts it in, "model" or "data".
        shape: its shape, which all parties know.
        whole: whether it has whole numbers alone, which are shared as they are, without bits after the point.
    """

    owner: str
    shape: tuple[int, ...]
    whole: bool = False

    @property
    def rank(self) -> int:
        """The owner's rank."""
        return RANKS[self.owner]


@dataclass(frozen=True)
class Program:
    """A function on shared tensors, with its declaration.

    Args:
        function: takes the inputs by their names, and returns a dictionary of shared tensors. A group of inputs is one
            argument: a dictionary.
        inputs: by the names of the function's parameters; those of a group as GROUP.NAME.
        reveal: for each result, who learns it: "model", "data" or "both".
        comparisons: how values are compared, "bits" or "keys".
        agreed: what else the owners must agree on, such as a digest of constants that the file reads.
    """

    function: Callable[..., Any]
    inputs: dict[str, Input]
    reveal: dict[str, str]
    comparisons: str = "bits"
    agreed: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def owners(self) -> dict[str, str]:
        """Who puts in each input, "model" or "data"; a group, which one file has, counts as one."""
        return {group_of(name): found.owner for name, found in self.inputs.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as it is: a program may call another one's function."""
        return self.function(*args, **kwargs)

    def results(self, tensors: Mapping[str, Any]) -> Any:
        """Call the function with shared tensors, by the names in `inputs`."""
        arguments: dict[str, Any] = {}
        for name, tensor in tensors.items():
            group, point, inner = name.partition(POINT)
            if point:
                arguments.setdefault(group, {})[inner] = tensor
            else:
                arguments[name] = tensor
        return self.function(**arguments)

    def learners(self, result: str) -> tuple[int, ...]:
        """Return the ranks of those who learn a result."""
        return tuple(RANKS.values()) if self.reveal[result] == BOTH else (RANKS[self.reveal[result]],)


def group_of(name: str) -> str:
    """Return the name of an input's group, or of an input that is in none."""
    return name.partition(POINT)[0]


def in_group(group: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to tensors of a group by the names of their inputs."""
    return {f"{group}{POINT}{name}": tensor for name, tensor in tensors.items()}
