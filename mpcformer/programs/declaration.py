"""What a program declares: the owner and shape of each input, and who learns each result."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, overload

from mpcformer.engines.crypten.program import BOTH, RANKS, Input, Program, group_of, in_group
from mpcformer.errors import UserInputError

COMPARISONS = "bits", "keys"
MAX_ELEMENTS = 1 << 27


Group = dict[str, Input]


@overload
def owner(name: str, shape: Sequence[int] = (), *, whole: bool = False) -> Input: ...


@overload
def owner(name: str, shape: Mapping[str, Sequence[int]], *, whole: bool = False) -> Group: ...


def owner(name: str, shape: Sequence[int] | Mapping[str, Sequence[int]] = (), *, whole: bool = False) -> Input | Group:
    """Declare an input: who puts it in, and its shape.

    Args:
        name: "model" or "data".
        shape: whole numbers; every party learns them. Or the shapes of several tensors by their names, which are one
            input: one npz or safetensors file has them all, and the function gets a dictionary.
        whole: whether the input has whole numbers alone. They are shared as they are, so that they take 64 bits, wrap
            as int64 does, and are cheaper to multiply.

    Raises:
        UserInputError: there is no such owner, or the shape is none.
    """
    if name not in RANKS:
        raise UserInputError(f"owner: {name!r} is no party that puts something in", 'declare "model" or "data"')
    if isinstance(shape, Mapping):
        for inner in shape:
            if not isinstance(inner, str) or not inner:
                remedy = "give the shapes of the group's tensors by their names"
                raise UserInputError(f"owner: {inner!r} is no name of a tensor", remedy)
        return {inner: Input(name, _sizes(sizes), whole) for inner, sizes in shape.items()}
    return Input(name, _sizes(shape), whole)


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
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
    return sizes


def program(
    *,
    inputs: Mapping[str, Any],
    reveal: Mapping[Any, Any],
    comparisons: str = "bits",
    agreed: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Program]:
    """Make a function a program.

    Args:
        inputs: for each parameter of the function, `owner(...)`.
        reveal: for each result, who learns it: "model", "data" or "both". Nothing else is opened.
        comparisons: "bits" compares as CrypTen does. "keys" takes one round for each comparison, and more bytes from
            the dealer; argmax, max, ReLU, softmax and whatever else compares takes fewer rounds, too.
        agreed: what else both owners must agree on, such as a digest of constants that the file reads from another one.

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
        flat: dict[str, Any] = {}
        for key, found in inputs.items():
            flat |= in_group(key, found) if isinstance(found, dict) and found else {key: found}
        if sorted(parameters) != sorted({group_of(key) for key in flat}):
            declared = ", ".join(inputs) or "nothing"
            raise UserInputError(
                f"program {name}: it takes {', '.join(parameters) or 'nothing'}, and its declaration has {declared}",
                "declare each parameter of the function in `inputs`",
            )
        for key, found in flat.items():
            if not isinstance(found, Input):
                remedy = 'write owner("data", SHAPE) or owner("model", SHAPE)'
                raise UserInputError(f"program {name}: the input {key} is declared as {found!r}", remedy)
            if group_of(key) in flat.keys() - {key} or found.owner != flat[_first(flat, key)].owner:
                remedy = "let one party put in all of it, as one dictionary"
                raise UserInputError(f"program {name}: the input {group_of(key)} has two owners or two forms", remedy)
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
        return Program(function, flat, dict(reveal), comparisons, dict(agreed or {}))

    return declare


def _first(flat: Mapping[str, Any], name: str) -> str:
    """Return the first input of the same group."""
    return next(each for each in flat if group_of(each) == group_of(name))
