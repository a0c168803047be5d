"""The examples of docs/extending.md run: each is what it says, and no more than it shows is needed."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mpcformer.channel import memory_pair
from mpcformer.engines import registry
from mpcformer.engines.base import BatchShape, load_public_model
from mpcformer.errors import UserInputError
from mpcformer.modeling.families import PLACES
from mpcformer.ring.random import fresh_key
from mpcformer.tasks import get_task
from mpcformer.tasks.registry import TASKS
from tests.modeling.test_families import SIZES, compared, saved
from tests.pair import InlineDealer, in_two_threads
from tests.tiny import save_student

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "extending.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(BLOCK.findall(PAGE.read_text()))


def example(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example that stands under this path, as the module that it would be."""
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    exec(compile(EXAMPLES[path], f"{PAGE.name}: {path}", "exec"), module.__dict__)
    if module.__name__ not in sys.modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_compile_and_fit_the_page(path: str) -> None:
    compile(EXAMPLES[path], path, "exec")
    assert max(map(len, EXAMPLES[path].splitlines())) <= 100


def test_an_engine(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example("mpcformer/engines/capped/engine.py", monkeypatch)
    (name, entry), *more = example("mpcformer/engines/registry.py", monkeypatch).ENGINES.items()
    assert not more
    monkeypatch.setitem(registry.ENGINES, name, entry)
    public = load_public_model(student)
    engine = registry.create_engine(name, rank=1, public=public, channel=None, weights=None)
    lift = registry.create_engine("lift", rank=1, public=public, channel=None, weights=None)
    assert engine.name == name
    assert engine.plan(BatchShape(2, 8)) == lift.plan(BatchShape(2, 8))
    with pytest.raises(UserInputError, match="a batch of 8192 tokens exceeds the engine's 4096"):
        engine.plan(BatchShape(512, 16))


def test_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpcformer.correlations.kinds import KINDS
    from mpcformer.protocols.party import Party

    kind = example("mpcformer/correlations/square.py", monkeypatch).Square()
    monkeypatch.setitem(KINDS, "square", kind)
    square = example("mpcformer/protocols/square.py", monkeypatch)
    x = torch.tensor([[3, -5, 0], [1 << 40, 7, -1]])
    share_1 = torch.randint(-(1 << 62), 1 << 62, x.shape, generator=torch.Generator().manual_seed(1))
    shares, ends = [x - share_1, share_1], memory_pair(timeout_s=20)
    seeds, session_id = [fresh_key(), fresh_key()], fresh_key()

    def run(rank: int) -> torch.Tensor:
        party = Party(rank, ends[rank], InlineDealer(rank, seeds, session_id))
        result: torch.Tensor = square.square(party, shares[rank])
        return result

    results = in_two_threads(run)
    assert torch.equal(results[0] + results[1], x * x)
    cost, counted = square.cost(tuple(x.shape)), ends[0].counters
    assert (cost.rounds, cost.bytes_to_model_owner) == (counted.rounds, counted.bytes_received)
    assert cost.dealer_bytes == 8 * x.numel()


def test_a_form(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpcformer.approximations import GELU_FORMS
    from tests.engines.test_engine import batch_of, run_private

    leaky = example("mpcformer/approximations/gelu_leaky.py", monkeypatch).LEAKY
    monkeypatch.setitem(GELU_FORMS, leaky.name, leaky)
    folder = save_student(tmp_path / "student", data_dir, gelu="leaky")
    inputs, expected = batch_of(folder, data_dir)
    _, logits, *_ = run_private(folder, inputs, engine="lift")
    assert float(np.abs(logits.numpy() - expected).max()) < 0.003
    with pytest.raises(UserInputError, match="engine crypten does not compute the form 'leaky'"):
        registry.create_engine("crypten", rank=1, public=load_public_model(folder), channel=None, weights=None)


def test_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = example("mpcformer/tasks/registry.py", monkeypatch).TOPICS
    monkeypatch.setitem(TASKS, topics.name, topics)
    assert get_task("topics").num_labels == 4


def test_a_model_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = example("mpcformer/modeling/families/data2vec.py", monkeypatch)
    monkeypatch.setitem(sys.modules, "mpcformer.modeling.families.data2vec", family)
    monkeypatch.setitem(PLACES, "data2vec-text", "data2vec.DATA2VEC")
    settings = SIZES | {"type_vocab_size": 1, "num_labels": 3}
    compared(tmp_path, saved(tmp_path, "Data2VecText", settings))
