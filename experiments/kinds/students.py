"""Experiments of kind `students`: teachers, students in all variants asked for, their scores, private inference."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.recipe import DistillRecipe
from distill.training.prepare import prepare
from experiments.kept import how_measured
from experiments.kinds import madeup
from experiments.kinds.experiment import Found, Place, remove
from experiments.kinds.models import Training, examples_digest, model_digest
from experiments.kinds.trainings import Of, Teacher, TrainingData, Trainings, Variant
from experiments.spec.quantities import Row
from experiments.spec.scales import MADE_UP, StudentsScale
from experiments.spec.spec import StudentsExperiment, digest
from mpcformer.console import console
from mpcformer.engines.plaintext import predict
from mpcformer.engines.registry import recorded_name
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, sha256_file, write_json
from mpcformer.modeling import default_backbone, load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.load import WEIGHTS
from mpcformer.ring import gemm
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import EVAL, Task, compute_metrics, encode, get_task, load_examples, primary_score
from parties.roles.journal import FILE_NAME as JOURNAL
from parties.runs import local_run
from parties.runs.network import network_profile
from parties.runs.published import published_scores
from parties.runs.simulation import LocalRunOptions
from parties.settings.job import JobDescription

EVAL_BATCH = 64


class Students:
    """One experiment at one scale.

    Args:
        spec: the experiment.
        scale: its section.
        place: where to work.

    Raises:
        UserInputError: anything wrong with options, data or models, before work starts.
    """

    def __init__(self, spec: StudentsExperiment, scale: StudentsScale, place: Place) -> None:
        self.spec, self.scale, self.place = spec, scale, place
        gemm.use(scale.device)
        if scale.data == MADE_UP and place.data_dir:
            raise UserInputError(
                f"--data-dir: {place.data_dir} is not for this scale, which makes its own data", "leave --data-dir out"
            )
        self.made_up = place.out / MADE_UP
        self.data_dir = self.made_up if scale.data == MADE_UP else place.data_dir
        self.data: dict[str, dict[str, str]] = {}
        if MADE_UP not in (scale.data, scale.backbone):
            self._load()

    def _load(self) -> None:
        """Data and backbone, and their digests. What is made up can be when there is a folder for it."""
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
            self.place.models.folder,
        )

    def _trained_on(self, task: Task, limit: int | None) -> TrainingData:
        if self.scale.data == MADE_UP:
            madeup.write_data(self.made_up, task)
        train = load_examples(task, task.train_split, data_dir=self.data_dir, limit=limit)
        return TrainingData(len(train), examples_digest(train))

    def _general_texts(self, trained_on: dict[str, TrainingData]) -> str:
        """Digest of what a general student reads, if a model starts from one: not of what a task has for itself."""
        if not any(model.start == "general" for model in self.spec.models):
            return ""
        found: list[str] = []
        for name in self.scale.general.tasks or self.scale.tasks:
            same = name in trained_on and self.scale.of(name).train_limit == self.scale.train_limit
            data = trained_on[name] if same else self._trained_on(get_task(name), self.scale.train_limit)
            found.append(data.digest)
        return digest(found)

    def run(self) -> Found:
        """Train what is missing, score, infer.

        Raises:
            MPCFormerError: what went wrong and where; a second call goes on from there.
        """
        if not self.data:
            self._load()
        found = Found(examples=self.examples)
        teachers = self._teachers(found)
        students = {variant: self.trainings.student(variant, teachers) for variant in self.trainings.variants()}
        kept = {variant: self._kept(variant, training) for variant, training in students.items()}
        found.n_trained += self._provide([students[variant] for variant, rows in kept.items() if not rows])
        scores: dict[Of, float] = {}
        for of, teacher in teachers.items():
            key, values = _teacher_key(of), self._teacher_values(of, teacher, found)
            scores[of] = values["score"]
            found.rows.append(Row(key, values, teacher.origin | {"measured": self._how(of[0])}))
        for variant, training in students.items():
            of, rows = (variant.task, variant.seed), kept[variant]
            found.n_kept += len(rows)
            found.rows += rows or self._measure(variant, training, teachers[of], scores[of], found)
        return found

    def _provide(self, students: list[Training]) -> int:
        """Students, and before them the general ones that those start from which are missing."""
        models, general = self.place.models, []
        for training in students:
            if training.general and not models.path(training).is_dir():
                assert isinstance(training.recipe, DistillRecipe)
                general.append(self.trainings.general(training.recipe.gelu, training.recipe.softmax))
        return (models.provide(general) if general else 0) + models.provide(students)

    def _measure(self, variant: Variant, training: Training, teacher: Teacher, whole: float, found: Found) -> list[Row]:
        """A student's rows; whole: the teacher's score."""
        student, secret, rows = self.place.models.path(training), self._is_private(variant), []
        score = self._score(variant.task, student, found)
        values = {"score": score, **({"kept": score / whole} if whole > 0 else {})}
        if self._shows("distance"):
            values["distance"] = self._distance(training, found)
        for key, measured in self._keys(variant):
            private = self._infer(key, student, teacher.folder, found) if secret else None
            numbers = values | (_measured(get_task(variant.task), private) if private else {})
            rows.append(Row(key, numbers, {"model": training.name, "measured": measured}))
        return rows

    def _keys(self, variant: Variant) -> Iterator[tuple[dict[str, Any], str]]:
        """Of a student's rows, and how each is measured."""
        for engine, network in itertools.product(self.scale.engines, self.scale.networks):
            how = {"engine": recorded_name(engine), "network": network} if self._is_private(variant) else {}
            yield variant.key() | {"engine": engine, "network": network}, self._how(variant.task, **how)

    def _is_private(self, variant: Variant) -> bool:
        return self.scale.private is None or variant.model.name in self.scale.private

    def _how(self, task: str, **private: str) -> str:
        """Hash of how a row is measured, private: the engine and the network of one that also runs privately."""
        scale, asked = self.scale.of(task), {"eval": self.data[task]["eval"]}
        if private:
            private |= {name: str(getattr(scale, name)) for name in ("private_limit", "batch_size", "device")}
        if self._shows("distance"):
            asked["distance"] = "set aside"
        return how_measured(**asked, max_length=scale.max_length, **private)

    def _kept(self, variant: Variant, training: Training) -> list[Row]:
        """A student's rows, if all of them are in the record."""
        name = training.name
        rows = [self.place.kept.find(key, model=name, measured=measured) for key, measured in self._keys(variant)]
        return [row for row in rows if row] if all(rows) else []

    def _kept_teacher(self, of: Of, training: Training, weights: str | None = None) -> Row | None:
        """A teacher's row in the record; weights: what it came out as here, none: any."""
        origin = {"model": training.name, "measured": self._how(of[0]), **({"weights": weights} if weights else {})}
        return self.place.kept.find(_teacher_key(of), **origin)

    def _teacher_values(self, of: Of, teacher: Teacher, found: Found) -> dict[str, float]:
        if row := self._kept_teacher(of, teacher.training, teacher.weights):
            found.n_kept += 1
            return row.values
        return {"score": self._score(of[0], teacher.folder, found)}

    def _teachers(self, found: Found) -> dict[Of, Teacher]:
        """By task and seed; those that start from another task's teacher are trained when that one is chosen."""
        of_all = [(task, seed) for task in self.scale.tasks for seed in self.scale.of(task).seeds]
        unneeded = self._unneeded(of_all)
        teachers: dict[Of, Teacher] = {}
        for second in (False, True):
            grids: dict[Of, list[Training]] = {}
            for of in (of for of in of_all if bool(self.scale.of(of[0]).teacher.after) is second):
                grid = self.trainings.grid(of, teachers)
                if of in unneeded and unneeded[of].training.name == grid[0].name:
                    teachers[of] = unneeded[of]
                else:
                    grids[of] = grid
            if grids:
                found.n_trained += self.place.models.provide(list(itertools.chain(*grids.values())))
            for of, grid in grids.items():
                best = self._best(of, grid, found)
                folder = self.place.models.path(best)
                teachers[of] = Teacher(best, model_digest(folder), folder)
        return {of: teachers[of] for of in of_all}

    def _unneeded(self, of_all: list[Of]) -> dict[Of, Teacher]:
        """Teachers that need not be had: rows of theirs, their students and those who start from them are all kept."""
        known: dict[Of, Teacher] = {}
        for of in sorted(of_all, key=lambda of: bool(self.scale.of(of[0]).teacher.after)):
            own = self.scale.of(of[0]).teacher
            if len(own.rates) == 1 and (not own.after or (own.after, of[1]) in known):
                (training,) = self.trainings.grid(of, known)
                if row := self._kept_teacher(of, training):
                    known[of] = Teacher(training, row.origin["weights"], self.place.models.path(training))
        whole = set(known)
        for variant in self.trainings.variants():
            of = (variant.task, variant.seed)
            if of in known and not self._kept(variant, self.trainings.student(variant, known)):
                whole.discard(of)
        for task, seed in of_all:
            if (after := self.scale.of(task).teacher.after) and (task, seed) not in whole:
                whole.discard((after, seed))
        return {of: known[of] for of in whole}

    def _best(self, key: Of, grid: list[Training], found: Found) -> Training:
        """Of teachers of one task and seed the one that scored best on the examples set aside, of equals the first."""
        folders = [self.place.models.path(training) for training in grid]
        if len(folders) == 1:
            return grid[0]
        rates = self.scale.of(key[0]).teacher.rates
        scores = [read_json(folder / "teacher.json")["selection_score"] for folder in folders]
        best = scores.index(max(scores))
        tried = [{"learning_rate": r, "selection_score": s} for r, s in zip(rates, scores, strict=True)]
        found.teachers.append({"task": key[0], "seed": key[1], "learning_rate": rates[best], "grid": tried})
        return grid[best]

    def _score(self, task_name: str, folder: Path, found: Found) -> float:
        """Of a model in plaintext, from a step that is kept."""
        task, scale = get_task(task_name), self.scale.of(task_name)
        asked: dict[str, Any] = {"model": sha256_file(folder / WEIGHTS), "eval": self.data[task_name]["eval"]}
        asked |= {"limit": scale.eval_limit, "max_length": scale.max_length}
        path = self.place.runs / f"score-{task_name}-{digest(asked)[:12]}.json"
        if not path.is_file():
            with console.status(f"plaintext score, {task_name}"):
                examples = load_examples(task, EVAL, data_dir=self.data_dir, limit=scale.eval_limit)
                model, tokenizer = load_checkpoint(folder, **_forms(folder)), load_tokenizer(folder)
                positions = model.config.max_position_embeddings
                encoded = encode(tokenizer, examples, positions=positions, max_length=scale.max_length)
                logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=EVAL_BATCH)
                metrics = compute_metrics(task, logits, examples.labels, examples.groups)
            write_json(path, {"asked": asked, "metrics": metrics})
            found.n_run += 1
        return score_of(task, read_json(path)["metrics"])

    def _shows(self, quantity: str) -> bool:
        """Whether any table or figure does: what takes work of its own is measured only then."""
        on_axes = (getattr(figure, axis, None) for figure in self.spec.figures for axis in ("x", "y"))
        return quantity in on_axes or any(quantity in table.values for table in self.spec.tables)

    def _distance(self, training: Training, found: Found) -> float:
        """Of a student from its teacher, from a step that is kept."""
        path = self.place.runs / f"distance-{training.name}.json"
        if not path.is_file():
            assert isinstance(training.recipe, DistillRecipe)
            with console.status(f"distance from the teacher, {training.label}"):
                student, tokenizer = (load(self.place.models.path(training)) for load in (load_student, load_tokenizer))
                prepared = prepare(training.recipe, tokenizer, positions=student.config.max_position_embeddings)
                value = prepared.distance(student, load_checkpoint(training.recipe.teacher))
            write_json(path, {"distance": value})
            found.n_run += 1
        return float(read_json(path)["distance"])

    def _infer(self, key: dict[str, Any], student: Path, teacher: Path, found: Found) -> dict[str, Any]:
        """results.json of a private run: one that is kept, or a new one, or the rest of one that was stopped."""
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
        folder = RunFolder(self.place.runs / f"{slug}-{digest(asked)[:12]}")
        if not folder.is_whole:
            console.rule(f"private inference: {', '.join(str(value) for value in key.values())}", align="left")
            local_run.check(options, folder.path)
            local_run.run(options, folder.path, resume=(folder.unfinished / JOURNAL).is_file())
            remove(folder.failed)
            found.n_run += 1
        return dict(read_json(folder.path / "results.json"))


def _teacher_key(of: Of) -> dict[str, str | int | float]:
    task, seed = of
    return {"task": task, "model": "teacher", "seed": seed}


def score_of(task: Task, metrics: dict[str, float]) -> float:
    """One number: what the paper's table shows for the task, else the mean of its metrics."""
    scores = published_scores(task.name, task.eval_splits)
    if not scores:
        return primary_score(metrics)
    means = [sum(metrics[key] for key in score.keys(task.eval_splits)) / len(score.names) for score in scores]
    return sum(means) / len(means)


def _measured(task: Task, results: dict[str, Any]) -> dict[str, float]:
    """A row's values from a run's results.json."""
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
    """The forms a checkpoint was trained with: a teacher's configuration names none, and the exact ones are meant."""
    config = read_json(folder / "config.json")
    return {name: config[name] for name in ("gelu", "softmax") if name in config}
