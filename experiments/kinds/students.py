"""Experiments of kind `students`: train teachers and students in all variants, score them, and infer privately."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.grid import choose_rate
from distill.objectives.closeness import distance
from distill.recipe import DistillRecipe
from distill.training.prepare import prepare
from experiments.kinds import madeup
from experiments.kinds.experiment import Measured, Workplace
from experiments.kinds.models import Training, examples_digest, model_digest
from experiments.kinds.trainings import Teacher, TeacherKey, TrainingData, Trainings, Variant
from experiments.records.reuse import how_measured
from experiments.spec.quantities import Row
from experiments.spec.scales import MADE_UP, StudentsScale
from experiments.spec.spec import StudentsExperiment, digest
from mpcformer.console import console
from mpcformer.engines.plaintext import predict
from mpcformer.engines.registry import recorded_name
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, remove, sha256_file, write_json
from mpcformer.modeling import default_backbone, load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.folder import WEIGHTS, weights_digest
from mpcformer.modeling.tokenizer import Limits
from mpcformer.ring import gemm
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import (
    EVAL,
    Task,
    class_order,
    compute_metrics,
    encode,
    get_task,
    load_examples,
    model_names,
    primary_score,
)
from parties.roles.journal import FILE_NAME as JOURNAL
from parties.runs import local_run
from parties.runs.network import network_profile
from parties.runs.published import published_scores
from parties.runs.simulation import LocalRunOptions
from parties.settings.job import JobDescription

EVAL_BATCH = 64


class Students:
    """An experiment of kind `students` at one scale.

    Args:
        spec: the experiment.
        scale: the section of that scale.
        workplace: the folders to work in.

    Raises:
        UserInputError: an option, the data or a model is wrong; no work has started then.
    """

    def __init__(self, spec: StudentsExperiment, scale: StudentsScale, workplace: Workplace) -> None:
        self.spec, self.scale, self.workplace = spec, scale, workplace
        gemm.check_device(scale.device)
        if scale.data == MADE_UP and workplace.data_dir:
            raise UserInputError(
                f"--data-dir: {workplace.data_dir} is not for this scale, which makes its own data",
                "leave --data-dir out",
            )
        self.made_up = workplace.out / MADE_UP
        self.data_dir = self.made_up if scale.data == MADE_UP else workplace.data_dir
        self.data: dict[str, dict[str, str]] = {}
        if MADE_UP not in (scale.data, scale.backbone):
            self._load()

    def _load(self) -> None:
        """Load the data and the backbone and compute their digests.

        Made-up data needs the output folder, so `run` calls this method for it later than the constructor would.
        """
        backbone = _backbone(self.scale.backbone, self.made_up / "model")
        trained_on: dict[str, TrainingData] = {}
        for name in self.scale.tasks:
            task, scale = get_task(name), self.scale.of(name)
            trained_on[name] = self._trained_on(task, scale.train_limit)
            evaluated = load_examples(task, EVAL, data_dir=self.data_dir, limit=scale.eval_limit)
            self.data[name] = {"train": trained_on[name].digest, "eval": examples_digest(evaluated)}
        self.examples = {name: {"training": trained_on[name].n, **digests} for name, digests in self.data.items()}
        load_tokenizer(backbone)
        self.trainings = Trainings(
            self.spec.models,
            self.scale,
            trained_on,
            self._general_texts(trained_on),
            self.data_dir,
            backbone,
            model_digest(backbone),
            self.workplace.models.folder,
        )

    def _trained_on(self, task: Task, limit: int | None) -> TrainingData:
        if self.scale.data == MADE_UP:
            madeup.write_data(self.made_up, task)
        train = load_examples(task, task.train_split, data_dir=self.data_dir, limit=limit)
        return TrainingData(len(train), examples_digest(train))

    def _general_texts(self, trained_on: dict[str, TrainingData]) -> str:
        """Return the digest of the texts that a general student is trained on, or "" if no model starts from one.

        The scale's own limit applies here, not the limits of single tasks.
        """
        if not any(model.start == "general" for model in self.spec.models):
            return ""
        digests: list[str] = []
        for name in self.scale.general.tasks or self.scale.tasks:
            same = name in trained_on and self.scale.of(name).train_limit == self.scale.train_limit
            data = trained_on[name] if same else self._trained_on(get_task(name), self.scale.train_limit)
            digests.append(data.digest)
        return digest(digests)

    def run(self) -> Measured:
        """Train the models that are missing, score all of them, and infer privately.

        Raises:
            MPCFormerError: a step failed; a second call goes on from there.
        """
        if not self.data:
            self._load()
        measured = Measured(examples=self.examples)
        teachers = self._teachers(measured)
        students = {variant: self.trainings.student(variant, teachers) for variant in self.trainings.variants()}
        reused = {variant: self._reused_rows(variant, training) for variant, training in students.items()}
        measured.n_trained += self._provide([students[variant] for variant, rows in reused.items() if not rows])
        scores: dict[TeacherKey, float] = {}
        for key, teacher in teachers.items():
            values = self._teacher_values(key, teacher, measured)
            scores[key] = values["score"]
            measured.rows.append(Row(_row_key(key), values, teacher.origin | {"measured": self._how(key[0])}))
        for variant, training in students.items():
            key, rows = (variant.task, variant.seed), reused[variant]
            measured.n_reused += len(rows)
            measured.rows += rows or self._measure(variant, training, teachers[key], scores[key], measured)
        return measured

    def _provide(self, students: list[Training]) -> int:
        """Train the missing students, after the missing general students that they start from; return the number."""
        models, general = self.workplace.models, []
        for training in students:
            if training.general and not models.path(training).is_dir():
                assert isinstance(training.recipe, DistillRecipe)
                general.append(self.trainings.general(training.recipe.gelu, training.recipe.softmax))
        return (models.provide(general) if general else 0) + models.provide(students)

    def _measure(
        self, variant: Variant, training: Training, teacher: Teacher, teacher_score: float, measured: Measured
    ) -> list[Row]:
        """Return the rows of a student: one for each engine and network."""
        student, is_private, rows = self.workplace.models.path(training), self._is_private(variant), []
        score = self._score(variant.task, student, measured)
        values = {"score": score, **({"score_share": score / teacher_score} if teacher_score > 0 else {})}
        if self._shows("distance"):
            values["distance"] = self._distance(training, measured)
        for key, how in self._row_keys(variant):
            results = self._infer(key, student, teacher.folder, measured) if is_private else None
            numbers = values | (_private_values(get_task(variant.task), results) if results else {})
            rows.append(Row(key, numbers, {"model": training.name, "measured": how}))
        return rows

    def _row_keys(self, variant: Variant) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the key of each row of a student, and the hash of how that row is measured."""
        for engine, network in itertools.product(self.scale.engines, self.scale.networks):
            how = {"engine": recorded_name(engine), "network": network} if self._is_private(variant) else {}
            yield variant.key() | {"engine": engine, "network": network}, self._how(variant.task, **how)

    def _is_private(self, variant: Variant) -> bool:
        return self.scale.private is None or variant.model.name in self.scale.private

    def _how(self, task: str, **private: str) -> str:
        """Return the hash of how a row is measured.

        Args:
            task: the name of the task.
            **private: engine and network, for a student that also runs privately.
        """
        scale, settings = self.scale.of(task), {"eval": self.data[task]["eval"]}
        if private:
            private |= {name: str(getattr(scale, name)) for name in ("private_limit", "batch_size", "device")}
        if self._shows("distance"):
            settings["distance"] = "set aside"
        return how_measured(**settings, max_length=scale.max_length, **private)

    def _reused_rows(self, variant: Variant, training: Training) -> list[Row]:
        """Return a student's rows in the record, or none unless the record has all of them."""
        reused, name = self.workplace.reused, training.name
        rows = [reused.find(key, model=name, measured=how) for key, how in self._row_keys(variant)]
        return [row for row in rows if row] if all(rows) else []

    def _reused_teacher(self, key: TeacherKey, training: Training, weights: str | None = None) -> Row | None:
        """Return a teacher's row in the record, or None.

        Args:
            key: the teacher's task and seed.
            training: how the teacher is made.
            weights: the digest that the trained weights must have; None accepts any.
        """
        origin = {"model": training.name, "measured": self._how(key[0]), **({"weights": weights} if weights else {})}
        return self.workplace.reused.find(_row_key(key), **origin)

    def _teacher_values(self, key: TeacherKey, teacher: Teacher, measured: Measured) -> dict[str, float]:
        if row := self._reused_teacher(key, teacher.training, teacher.weights):
            measured.n_reused += 1
            return row.values
        return {"score": self._score(key[0], teacher.folder, measured)}

    def _teachers(self, measured: Measured) -> dict[TeacherKey, Teacher]:
        """Return the teachers by task and seed, and train those that are missing.

        Teachers that start from another task's teacher are trained in a second pass, when that one has been chosen.
        """
        keys = [(task, seed) for task in self.scale.tasks for seed in self.scale.of(task).seeds]
        skipped = self._skipped_teachers(keys)
        teachers: dict[TeacherKey, Teacher] = {}
        for second_pass in (False, True):
            grids: dict[TeacherKey, list[Training]] = {}
            for key in (key for key in keys if bool(self.scale.of(key[0]).teacher.after) is second_pass):
                grid = self.trainings.grid(key, teachers)
                if key in skipped and skipped[key].training.name == grid[0].name:
                    teachers[key] = skipped[key]
                else:
                    grids[key] = grid
            if grids:
                measured.n_trained += self.workplace.models.provide(list(itertools.chain(*grids.values())))
            for key, grid in grids.items():
                best = self._best(key, grid, measured)
                folder = self.workplace.models.path(best)
                teachers[key] = Teacher(best, model_digest(folder), folder)
        return {key: teachers[key] for key in keys}

    def _skipped_teachers(self, keys: list[TeacherKey]) -> dict[TeacherKey, Teacher]:
        """Return the teachers to skip, because every row that depends on them is reused.

        These are their own rows, the rows of their students, and the rows of the teachers that start from them.
        """
        known: dict[TeacherKey, Teacher] = {}
        for key in sorted(keys, key=lambda key: bool(self.scale.of(key[0]).teacher.after)):
            own = self.scale.of(key[0]).teacher
            if len(own.rates) == 1 and (not own.after or (own.after, key[1]) in known):
                (training,) = self.trainings.grid(key, known)
                if row := self._reused_teacher(key, training):
                    known[key] = Teacher(training, row.origin["weights"], self.workplace.models.path(training))
        whole = set(known)
        for variant in self.trainings.variants():
            key = (variant.task, variant.seed)
            if key in known and not self._reused_rows(variant, self.trainings.student(variant, known)):
                whole.discard(key)
        for task, seed in keys:
            if (after := self.scale.of(task).teacher.after) and (task, seed) not in whole:
                whole.discard((after, seed))
        return {key: known[key] for key in whole}

    def _best(self, key: TeacherKey, grid: list[Training], measured: Measured) -> Training:
        """Return the training whose teacher scored best on the examples set aside, and note all scores if several."""
        if len(grid) == 1:
            return grid[0]
        records = [read_json(self.workplace.models.path(training) / "teacher.json") for training in grid]
        rates = self.scale.of(key[0]).teacher.rates
        best, tried = choose_rate(rates, [record["selection_score"] for record in records])
        measured.teachers.append({"task": key[0], "seed": key[1], "learning_rate": rates[best], "grid": tried})
        return grid[best]

    def _score(self, task_name: str, folder: Path, measured: Measured) -> float:
        """Return the plaintext score of a model, from a finished step if there is one."""
        task, scale = get_task(task_name), self.scale.of(task_name)
        asked: dict[str, Any] = {"model": weights_digest(folder), "eval": self.data[task_name]["eval"]}
        asked |= {"limit": scale.eval_limit, "max_length": scale.max_length}
        path = self.workplace.runs / f"score-{task_name}-{digest(asked)[:12]}.json"
        if not path.is_file():
            with console.status(f"plaintext score, {task_name}"):
                examples = load_examples(task, EVAL, data_dir=self.data_dir, limit=scale.eval_limit)
                model, tokenizer = load_checkpoint(folder, **_forms(folder)), load_tokenizer(folder)
                encoded = encode(tokenizer, examples, limits=Limits.of(model.config), max_length=scale.max_length)
                logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=EVAL_BATCH)
                if (order := class_order(model_names(model.config), task, str(folder))) is not None:
                    logits = logits[:, order]
                metrics = compute_metrics(task, logits, examples.labels, examples.groups)
            write_json(path, {"asked": asked, "metrics": metrics})
            measured.n_run += 1
        return score_of(task, read_json(path)["metrics"])

    def _shows(self, quantity: str) -> bool:
        """Return whether a table or figure shows the quantity: some quantities are measured only then."""
        on_axes = (getattr(figure, axis, None) for figure in self.spec.figures for axis in ("x", "y"))
        return quantity in on_axes or any(quantity in table.values for table in self.spec.tables)

    def _distance(self, training: Training, measured: Measured) -> float:
        """Return the distance of a student from its teacher, from a finished step if there is one."""
        path = self.workplace.runs / f"distance-{training.name}.json"
        if not path.is_file():
            assert isinstance(training.recipe, DistillRecipe)
            with console.status(f"distance from the teacher, {training.label}"):
                folder = self.workplace.models.path(training)
                student, tokenizer = load_student(folder), load_tokenizer(folder)
                prepared = prepare(training.recipe, tokenizer, limits=Limits.of(student.config))
                value = distance(prepared, student, load_checkpoint(training.recipe.teacher))
            write_json(path, {"distance": value})
            measured.n_run += 1
        return float(read_json(path)["distance"])

    def _infer(self, key: dict[str, Any], student: Path, teacher: Path, measured: Measured) -> dict[str, Any]:
        """Return results.json of a private run: of a finished one, a new one, or one that was stopped and goes on."""
        scale = self.scale.of(key["task"])
        job = JobDescription(
            task=key["task"],
            limit=min((n for n in (scale.private_limit, scale.eval_limit) if n), default=None),
            batch_size=scale.batch_size,
            max_length=scale.max_length,
            engine=key["engine"],
        )
        options = LocalRunOptions(
            student=student,
            teacher=teacher,
            job=job,
            data_dir=self.data_dir,
            network=network_profile(key["network"]),
            device=scale.device,
        )
        weights = sha256_file(student / WEIGHTS)
        asked = {**key, "student": weights, "eval": self.data[key["task"]]["eval"], "scale": scale.model_dump()}
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(str(value) for value in key.values()).lower())
        folder = RunFolder(self.workplace.runs / f"{slug}-{digest(asked)[:12]}")
        if not folder.is_whole:
            console.rule(f"private inference: {', '.join(str(value) for value in key.values())}", align="left")
            local_run.check(options, folder.path)
            local_run.run(options, folder.path, resume=(folder.unfinished / JOURNAL).is_file())
            remove(folder.failed)
            measured.n_run += 1
        return dict(read_json(folder.path / "results.json"))


def _row_key(key: TeacherKey) -> dict[str, str | int | float]:
    task, seed = key
    return {"task": task, "model": "teacher", "seed": seed}


def score_of(task: Task, metrics: dict[str, float]) -> float:
    """Return one number: the task's score in the paper's table if it has one, else the mean of the metrics."""
    scores = published_scores(task.name, task.eval_splits)
    if not scores:
        return primary_score(metrics)
    means = [sum(metrics[key] for key in score.keys(task.eval_splits)) / len(score.names) for score in scores]
    return sum(means) / len(means)


def _private_values(task: Task, results: dict[str, Any]) -> dict[str, float]:
    """Return the values of a row from results.json of a private run."""
    n, online, offline = results["examples"], results["online"], results["offline"]
    return {
        "compared_score": score_of(task, results["metrics"]["student"]),
        "private_score": score_of(task, results["metrics"]["private"]),
        "label_agreement": results["label_agreement"],
        "max_logit_error": results["max_abs_logit_error"],
        "plaintext_seconds": results["plaintext"]["seconds_per_example"]["student"]["median"],
        "online_seconds": online["seconds_per_example"]["median"],
        "offline_seconds": offline["seconds"] / n,
        "online_bytes": sum(online["bytes"].values()) / n,
        "dealer_bytes": offline["bytes"]["dealer->model-owner"] / n,
        "rounds": online["rounds_per_batch"],
    }


def _backbone(name: str, made_up: Path) -> Path:
    if name == MADE_UP:
        return madeup.write_model(made_up)
    return default_backbone() if name == "minilm" else resolve_checkpoint(name)


def _forms(folder: Path) -> dict[str, Any]:
    """Return the forms that a checkpoint was trained with; a teacher's configuration names none and has exact ones."""
    config = read_json(folder / "config.json")
    return {name: config[name] for name in ("gelu", "softmax") if name in config}
