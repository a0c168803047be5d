"""Training on several processes gives the same weights as on one, and only the main process writes files."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import distill.training.loop
from distill.general import distill_general
from distill.grid import train_teachers
from distill.recipe import DistillRecipe, GeneralRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.data import Data
from distill.training.processes import Processes, current
from mpcformer.errors import DependencyError, MPCFormerError, UserInputError
from mpcformer.tasks import Encoded
from tests.tiny import TRAINING, save_bert, save_parquet
from tests.together import together

CPU = torch.device("cpu")
# There are 71 sentences of 6 to 14 tokens, in batches of 7. The shares of two processes have 4 and 3 rows; in the last
# batch they have 1 and 0.
SETTINGS = TRAINING | {"batch_size": 7}
N_TRAINING = 71
STEPS_PER_EPOCH = 11


def teacher_recipe(base: Path, data: Path, **changes: Any) -> TeacherRecipe:
    return TeacherRecipe(
        **({"model": str(base), "data_dir": data, "epochs": 3, "learning_rate": 3e-3} | SETTINGS | changes)
    )


def student_recipe(teacher: Path, data: Path, **changes: Any) -> DistillRecipe:
    rates = {"learning_rate1": 5e-4, "learning_rate2": 5e-4, "epochs1": 2, "epochs2": 2}
    return DistillRecipe(**({"teacher": teacher, "data_dir": data} | SETTINGS | rates | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone without dropout, because every process draws its own dropout."""
    folder = tmp_path_factory.mktemp("processes") / "base"
    return save_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def alone(base: Path, data_dir: Path) -> Path:
    """A folder with a teacher and a student that a single process trained."""
    folder = base.with_name("alone")
    assert train_teacher(teacher_recipe(base, data_dir), folder / "teacher")["n_training"] == N_TRAINING
    distill_student(student_recipe(folder / "teacher", data_dir), folder / "student")
    return folder


def make_teacher(base: Path, data: Path, out: Path, **changes: Any) -> Any:
    return train_teacher(teacher_recipe(base, data, **changes), out)


def make_teachers(base: Path, data: Path, out: Path) -> Any:
    return train_teachers(teacher_recipe(base, data, epochs=1), [1e-6, 3e-3], out)


def make_student(teacher: Path, data: Path, out: Path, stop: int | None = None, resume: bool = False) -> Any:
    """Return the record, or None if the run was stopped before step `stop`, counted over both stages."""
    step, calls = distill.training.loop._Runner._step, [0]

    def stopping(self: Any, *arguments: Any) -> float:
        if calls[0] == stop:
            raise KeyboardInterrupt
        calls[0] += 1
        return step(self, *arguments)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distill.training.loop._Runner, "_step", stopping)
            recipe = student_recipe(teacher, data)
            return distill_student(recipe, out, resume=resume, checkpoint_minutes=1e9 if stop is None else 0.0)
    except KeyboardInterrupt:
        return None


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for key in a:
        # Softmax ignores the key bias, so its gradient consists of rounding errors, from which AdamW makes full steps.
        tolerance = 2e-2 if key.endswith("key.bias") else 2e-5
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")


def assert_same_log(log: list[dict[str, Any]], folder: Path, record: str) -> None:
    expected = json.loads((folder / record).read_text())["log"]
    assert [(row["stage"], row["epoch"]) for row in log] == [(row["stage"], row["epoch"]) for row in expected]
    for row, other in zip(log, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row.get("selection_score") == other.get("selection_score")


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_teacher(base: Path, alone: Path, data_dir: Path, tmp_path: Path, size: int) -> None:
    records = together(tmp_path / "logs", make_teacher, base, data_dir, tmp_path / "teacher", size=size)
    assert records[0]["versions"].pop("processes") == str(size)
    for record in records:
        assert_same_log(record["log"], alone, "teacher/teacher.json")
    assert_same_weights(alone / "teacher", tmp_path / "teacher")
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {p.name for p in (alone / "teacher").iterdir()}
    assert ["33/33" in (tmp_path / "logs" / f"{rank}.log").read_text() for rank in range(size)] == [
        rank == 0 for rank in range(size)
    ]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_student(alone: Path, data_dir: Path, tmp_path: Path, size: int) -> None:
    arguments = (alone / "teacher", data_dir, tmp_path / "student")
    for record in together(tmp_path / "logs", make_student, *arguments, size=size):
        assert_same_log(record["log"], alone, "student/distillation.json")
    assert_same_weights(alone / "student", tmp_path / "student")
    assert {path.name for path in (tmp_path / "student").iterdir()} == {p.name for p in (alone / "student").iterdir()}


def make_general(base: Path, data: Path, out: Path) -> Any:
    settings = {key: value for key, value in SETTINGS.items() if key != "task"}
    recipe = GeneralRecipe(tasks=("sst2",), model=str(base), data_dir=data, epochs=2, learning_rate=5e-4, **settings)
    return distill_general(recipe, out)


@pytest.mark.slow
def test_a_general_student(base: Path, data_dir: Path, tmp_path: Path) -> None:
    make_general(base, data_dir, tmp_path / "alone" / "general")
    for record in together(tmp_path / "logs", make_general, base, data_dir, tmp_path / "general", size=2):
        assert_same_log(record["log"], tmp_path / "alone", "general/general.json")
    assert_same_weights(tmp_path / "alone" / "general", tmp_path / "general")


# Within stage 1; within the second epoch of stage 2, when a best epoch exists.
@pytest.mark.parametrize("stop", [5, pytest.param(3 * STEPS_PER_EPOCH + 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_goes_on_with_another_number_of_processes(
    alone: Path, data_dir: Path, tmp_path: Path, stop: int, before: int
) -> None:
    arguments = (alone / "teacher", data_dir, tmp_path / "student")
    runs = [functools.partial(together, tmp_path / "logs", make_student), lambda *given: [make_student(*given)]]
    first, second = runs if before == 2 else runs[::-1]
    assert not any(first(*arguments, stop))
    assert not (tmp_path / "student").exists()
    for record in second(*arguments, None, True):
        assert [row["epoch"] for row in record["log"]] == [1, 2, 1, 2]
    assert_same_weights(alone / "student", tmp_path / "student")


def test_shares_of_a_batch_weigh_as_the_batch_does() -> None:
    lengths = [4, 5, 5, 9, 12]
    data = Data([Encoded([1] * n, [0] * n) for n in lengths], torch.arange(5), 0, 5)
    for size in (1, 2, 3, 7):
        shares = [data.share(list(range(5)), Processes(rank, size, CPU), CPU) for rank in range(size)]
        rows = [share["labels"].float() for share in shares if share.weight]
        assert sorted(torch.cat(rows).tolist()) == list(range(5))
        means = {"rows": 0.0, "tokens": 0.0, "pairs": 0.0}
        for share in shares:
            length = share["attention_mask"].sum(1).float()
            value = share["labels"].float()
            means["rows"] += share.weight * float(value.mean())
            means["tokens"] += share.weight * share.tokens * float((value * length).sum() / length.sum())
            means["pairs"] += share.weight * share.pairs * float((value * length**2).sum() / (length**2).sum())
        for power, mean in enumerate(means.values()):
            whole = sum(i * n**power for i, n in enumerate(lengths)) / sum(n**power for n in lengths)
            assert mean == pytest.approx(whole, rel=1e-6)
        if size == 1:
            assert (shares[0].weight, shares[0].tokens, shares[0].pairs) == (1.0, 1.0, 1.0)


def seeds_of_a_teacher(base: Path, data: Path, out: Path) -> list[int]:
    seen: list[int] = []
    manual_seed = torch.manual_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda seed: (seen.append(seed), manual_seed(seed))[1])
        make_teacher(base, data, out, epochs=1)
    return seen


@pytest.mark.slow
def test_each_process_draws_its_own_dropout(data_dir: Path, tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base")
    arguments = (seeds_of_a_teacher, base, data_dir)
    main, other = together(tmp_path / "logs", *arguments, tmp_path / "two")
    assert main == seeds_of_a_teacher(base, data_dir, tmp_path / "one")
    assert len(set(main) & set(other)) <= 1, "at most the seed of the new head is shared"
    assert len(set(other)) >= 8


def talk() -> list[Any]:
    """Return what a process receives, in the order of the assertions below."""
    team = current()
    found: list[Any] = [team.on_main(lambda: {"rank": team.rank, "half": 0.1})]

    def refuse() -> None:
        raise UserInputError("this is wrong", "do that")

    def break_down() -> None:
        raise OSError("no space")

    for work in (refuse, break_down):
        try:
            team.on_main(work)
        except (MPCFormerError, OSError) as error:
            found.append([type(error).__name__, str(error), getattr(error, "exit_code", None)])
    read = {"a": torch.tensor(3.0), "b": torch.tensor([[1, 2]]), "c": torch.zeros(0, 2), "d": torch.tensor([True])}
    heard = team.tensors_of_main(lambda: read if team.is_main else {})
    assert all(torch.equal(heard[key], read[key]) and heard[key].dtype == read[key].dtype for key in read)
    team.check_same("secret", lambda: "equal")
    try:
        team.check_same("data", lambda: str(min(team.rank, 1)))
    except UserInputError as error:
        found.append(error.what)
    with team.first_here_first():
        found.append(team.rank)
    return found


def test_what_is_said_reaches_all(tmp_path: Path) -> None:
    main, *others = together(tmp_path / "logs", talk, size=3)
    for rank, other in enumerate(others, 1):
        assert other[0] == main[0] == {"rank": 0, "half": 0.1}
        assert other[1] == ["MPCFormerError", "this is wrong\nfix: do that", 2]
        assert other[2][1].startswith("the main process failed")
        assert other[3] == main[3] == "the 3 processes were not given the same data"
        assert other[4] == rank
    assert main[1] == ["UserInputError", "this is wrong\nfix: do that", 2]
    assert main[2][:2] == ["OSError", "no space"]


def refused(train: Callable[..., Any], *arguments: list[Path]) -> str:
    try:
        train(*(choices[current().rank] for choices in arguments))
    except MPCFormerError as error:
        return error.what
    return "not refused"


def test_bad_input_is_refused_by_all(base: Path, alone: Path, data_dir: Path, tmp_path: Path) -> None:
    other, data = save_parquet(tmp_path / "data", n_train=90), [data_dir] * 2
    said = together(tmp_path / "1", refused, make_teacher, [base] * 2, [data_dir, other], [tmp_path / "new"] * 2)
    assert said == ["the 2 processes were not given the same training data"] * 2
    said = together(tmp_path / "2", refused, make_student, [alone / "teacher", base], data, [tmp_path / "s"] * 2)
    assert said == ["the 2 processes were not given the same teacher"] * 2
    (tmp_path / "taken").touch()
    said = together(tmp_path / "3", refused, make_teacher, [base] * 2, data, [tmp_path / "taken"] * 2)
    assert all("is a file" in what for what in said)


@pytest.mark.slow
def test_all_start_from_the_main_processs_weights(base: Path, alone: Path, data_dir: Path, tmp_path: Path) -> None:
    bases = [base, save_bert(tmp_path / "base", seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)]
    said = together(tmp_path / "1", refused, make_teacher, bases, [data_dir] * 2, [tmp_path / "teacher"] * 2)
    assert said == ["not refused"] * 2
    assert_same_weights(alone / "teacher", tmp_path / "teacher")


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for alone in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", alone)
        assert (current().rank, current().size) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DependencyError, match=r"started 4 processes .* accelerate is missing"):
        current()


@pytest.mark.parametrize("command", [pytest.param("demo", marks=pytest.mark.slow), "replay glue"])
def test_a_command_with_processes_of_its_own_refuses_a_launcher(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mpcformer", *command.split(), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"WORLD_SIZE": "4"},
    )
    assert done.returncode == 2
    assert f"mpcformer {command.split()[0]}: a launcher started 4 of it (WORLD_SIZE)" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerates_launcher(base: Path, alone: Path, data_dir: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    recipe = f"--task sst2 --model {base} --data-dir {data_dir} --epochs 3 --lr 3e-3 --batch-size 7 --max-length 32"
    command = [*launcher, "-m", "mpcformer", "teacher", *recipe.split(), "--precision", "fp32"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "teacher")], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The task's own evaluation split was not looked at.") == 1
    one = make_teacher(base, data_dir, tmp_path / "one", selection_share=0.05)
    assert_same_log(one["log"], tmp_path, "teacher/teacher.json")
    assert_same_weights(tmp_path / "one", tmp_path / "teacher")


@pytest.mark.slow
def test_several_rates_are_tried_together(base: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "teacher"
    ours, theirs = together(tmp_path / "logs", make_teachers, base, data_dir, out)
    assert ours == theirs == json.loads((out / "teacher.json").read_text())
    assert [row["learning_rate"] for row in ours["grid"]] == [1e-6, 3e-3]
    assert ours["selection_score"] == max(row["selection_score"] for row in ours["grid"])
    assert [path.name for path in out.parent.iterdir()] == ["teacher"]
