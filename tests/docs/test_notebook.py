"""The notebooks of the documentation run from their first cell to their last, as a kernel runs them."""

import ast
import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def cells(name: str) -> list[str]:
    """Return the source of each cell with code."""
    notebook = json.loads((DOCS / name).read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


async def run(sources: list[str]) -> list[Any]:
    """Run cells in one namespace and one event loop, as a kernel does; return the value of each cell's last line."""
    namespace: dict[str, Any] = {}
    values = []
    for source in sources:
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.copy_location(
                ast.Assign(targets=[ast.Name("_value", ast.Store())], value=last.value, lineno=last.lineno), last
            )
        namespace["_value"] = None
        code = compile(ast.fix_missing_locations(tree), "notebook", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, namespace)
        if inspect.isawaitable(found):
            await found
        values.append(namespace["_value"])
    return values


def test_the_notebook_runs() -> None:
    _, one, several, (was_ready, seconds, online), later, _ = asyncio.run(run(cells("ask.ipynb")))
    assert one[0]["label"] == "positive"
    assert [label for _, label, _, _ in several[:2]] == ["positive", "negative"]
    assert isinstance(was_ready, bool)
    assert 0 < online <= seconds
    assert len(later) == 2


def test_the_notebook_on_crypten_runs() -> None:
    _, inputs, told, (error, rounds, correlations), refusal, _ = asyncio.run(run(cells("crypten.ipynb")))
    assert inputs == ["w", "x"]
    assert error <= 0.003
    assert rounds == told["rounds"]
    assert correlations == told["n_requests"]
    assert refusal == "program: get_plain_text at score.py:10 opens a value in the middle"
