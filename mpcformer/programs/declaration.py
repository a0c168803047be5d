"""What a program declares: the owner and shape of each input, and who learns each result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from mpcformer.errors import UserInputError

# The ranks of the owners by the words of a declaration.
RANKS = {"model": 0, "data": 1}
BOTH = "both"
COMPARISONS = "bits", "keys"
MAX_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Input:
    """An input of a program.

    Args:
        owner: who puts it in, "model" or "data".
        shape: its shape, which all parties know.
    """

    owner: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The owner's rank."""
        return RANKS[self.owner]


def owner(name: str, shape: Sequence[int] = ()) -> Input:
    """Declare an input: who puts it in, and its shape.

    Args:
        name: "model" or "data".
        shape: whole numbers; every party learns them.

    Raises:
        UserInputError: there is no such owner, or the shape is none.
    """
    if name not in RANKS:
        raise UserInputError(f"owner: {name!r} is no party that puts something in", 'declare "model" or "data"')
    try:
        sizes = tuple(int(n) for n in shape)
        wrong = any(n < 0 or n != given for n, given in zip(sizes, shape, strict=True))
    except (TypeError, ValueError):
        sizes, wrong = (), True
    n_elements = 1
    for n in sizes:
        n_elements *= n
    if wrong or n_elements > MAX_ELEMENTS:
        remedy = f"give whole numbers, for at most {MAX_ELEMENTS} elements"
        raise UserInputError(f"owner: {shape!r} is not the shape of an input", remedy)
    return Input(name, sizes)


@dataclass(frozen=True)
class Program:
    """A function on shared tensors, with its declaration.

    Args:
        function: takes the inputs by their names, and returns a dictionary of shared tensors.
        inputs: by the names of the function's parameters.
        reveal: for each result, who learns it: "model", "data" or "both".
        comparisons: how values are compared, "bits" or "keys".
    """

    function: Callable[..., Any]
    inputs: dict[str, Input]
    reveal: dict[str, str]
    comparisons: str = "bits"

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as it is: a program may call another one's function."""
        return self.function(*args, **kwargs)

    def learners(self, result: str) -> tuple[int, ...]:
        """Return the ranks of those who learn a result."""
        return tuple(RANKS.values()) if self.reveal[result] == BOTH else (RANKS[self.reveal[result]],)


def program(
    *, inputs: Mapping[str, Any], reveal: Mapping[Any, Any], comparisons: str = "bits"
) -> Callable[[Callable[..., Any]], Program]:
    """Make a function a program.

    Args:
        inputs: for each parameter of the function, `owner(...)`.
        reveal: for each result, who learns it: "model", "data" or "both". Nothing else is opened.
        comparisons: "bits" compares as CrypTen does. "keys" takes one round for each comparison, and more bytes from
            the dealer; argmax, max, ReLU, softmax and whatever else compares takes fewer rounds, too.

    Raises:
        UserInputError: the declaration does not fit the function.

    Example:
        >>> @program(inputs={"x": owner("data", (5,)), "w": owner("model", (5,))}, reveal={"y": "data"})
        ... def dot(x, w):
        ...     return {"y": (x * w).sum()}
    """

    def declare(function: Callable[..., Any]) -> Program:
        name = getattr(function, "__name__", "the function")
        kinds = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
        parameters = [p.name if p.kind in kinds else f"*{p.name}" for p in signature(function).parameters.values()]
        if sorted(parameters) != sorted(inputs):
            declared = ", ".join(inputs) or "nothing"
            raise UserInputError(
                f"program {name}: it takes {', '.join(parameters) or 'nothing'}, and its declaration has {declared}",
                "declare each parameter of the function in `inputs`",
            )
        for key, found in inputs.items():
            if not isinstance(found, Input):
                remedy = 'write owner("data", SHAPE) or owner("model", SHAPE)'
                raise UserInputError(f"program {name}: the input {key} is declared as {found!r}", remedy)
        known = [*RANKS, BOTH]
        for result, learner in reveal.items():
            if not isinstance(result, str) or not result.isidentifier() or learner not in known:
                remedy = f"write a name, and one of {', '.join(known)}"
                raise UserInputError(f"program {name}: the result {result!r} is revealed to {learner!r}", remedy)
        if not reveal:
            raise UserInputError(f"program {name}: it reveals nothing", "declare who learns its results in `reveal`")
        if comparisons not in COMPARISONS:
            remedy = f"write one of {', '.join(COMPARISONS)}"
            raise UserInputError(f"program {name}: comparisons are {comparisons!r}", remedy)
        return Program(function, dict(inputs), dict(reveal), comparisons)

    return declare
