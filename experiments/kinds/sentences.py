"""Experiments of kind `sentences`: distil a sentence encoder, and ask it privately for the embeddings of sentences.

The score is the rank correlation (Spearman) of the cosines of pairs with their similarities. Private embeddings are
compared with the student's in plaintext: by their cosine, by the score of the pairs of which both sentences were asked
for, and by how many of the nearest neighbours of each sentence, among all that were asked for, are the same.
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv
from scipy.stats import spearmanr

from distill.recipe import DistillRecipe
from experiments.kinds import madeup
from experiments.kinds.experiment import Measured, Workplace
from experiments.kinds.models import Training, examples_digest, model_digest
from experiments.spec.quantities import Row
from experiments.spec.scales import MADE_UP
from experiments.spec.sentences import SentencesScale
from experiments.spec.spec import SentencesExperiment, digest
from mpcformer.console import console, progress
from mpcformer.engines.plaintext import predict
from mpcformer.errors import UserInputError
from mpcformer.files import read_json, write_json
from mpcformer.modeling import default_backbone, load_checkpoint, load_student, load_tokenizer, resolve_checkpoint
from mpcformer.modeling.folder import weights_digest
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import EVAL, Examples, encode, get_task, load_examples
from mpcformer.tasks.registry import EMBEDDING
from parties.ask.local import local

Vectors = NDArray[np.float64]
EVAL_BATCH = 64
TEACHER, STUDENT = "teacher", "student"


class Sentences:
    """An experiment of kind `sentences` at one scale.

    Args:
        spec: the experiment.
        scale: the section of that scale.
        workplace: the folders to work in.

    Raises:
        UserInputError: the task has no pairs with a similarity, or a data folder is given for made-up data.
    """

    def __init__(self, spec: SentencesExperiment, scale: SentencesScale, workplace: Workplace) -> None:
        self.spec, self.scale, self.workplace, self.task = spec, scale, workplace, get_task(scale.task)
        if len(self.task.text_columns) != 2 or not self.task.is_regression:
            raise UserInputError(
                f"task: {scale.task} has no pairs of sentences with a similarity", "choose another task, such as stsb"
            )
        if scale.data == MADE_UP and workplace.data_dir:
            raise UserInputError(
                f"--data-dir: {workplace.data_dir} is not for this scale, which makes its own data",
                "leave --data-dir out",
            )
        self.made_up = workplace.out / MADE_UP
        self.data_dir = self.made_up if scale.data == MADE_UP else workplace.data_dir

    def run(self) -> Measured:
        """Distil the student if it is missing, and compare its embeddings with the teacher's and with private ones.

        Raises:
            MPCFormerError: a step failed; a second call goes on from there.
        """
        scale = self.scale
        if scale.data == MADE_UP:
            madeup.write_data(self.made_up, self.task)
        teacher = self._backbone()
        train = load_examples(self.task, self.task.train_split, data_dir=self.data_dir, limit=scale.train_limit)
        pairs = load_examples(self.task, EVAL, data_dir=self.data_dir, limit=scale.eval_limit)
        digests = {"train": examples_digest(train), "eval": examples_digest(pairs)}
        measured = Measured(examples={self.task.name: digests})
        training = self._training(teacher, train)
        measured.n_trained += self.workplace.models.provide([training])
        student = self.workplace.models.path(training)
        sentences = _unique(pairs)
        at = {sentence: row for row, sentence in enumerate(sentences)}
        rows = np.array([[at[text] for text in pair] for pair in pairs.texts])
        labels = np.array(pairs.labels)
        scores = {}
        for name, folder in ((TEACHER, teacher), (STUDENT, student)):
            with console.status(f"embeddings in plaintext, {name}"):
                vectors = self._plain(folder, sentences, is_teacher=name == TEACHER)
            scores[name] = _score(vectors, rows, labels)
        values = {"score": scores[STUDENT], "score_share": scores[STUDENT] / scores[TEACHER]}
        private, cost = self._private(student, sentences[: scale.texts], measured)
        values |= compared(vectors[: len(private)], private, rows, labels, scale.neighbours) | cost
        measured.rows += [Row({"model": TEACHER}, {"score": scores[TEACHER]}), Row({"model": STUDENT}, values)]
        return measured

    def _backbone(self) -> Path:
        if self.scale.backbone == MADE_UP:
            return madeup.write_model(self.made_up / "model")
        return default_backbone() if self.scale.backbone == "minilm" else resolve_checkpoint(self.scale.backbone)

    def _training(self, teacher: Path, train: Examples) -> Training:
        """Return the training of the student, and write the sentences that it learns from."""
        scale, texts = self.scale, _unique(train)
        path = self.workplace.runs / f"sentences-{digest(texts)[:12]}.csv"
        csv.write_csv(pa.table({"sentence": texts}), path)
        recipe = DistillRecipe(
            teacher=teacher,
            task=EMBEDDING,
            train_data=path,
            label_column="",
            gelu=scale.gelu,
            softmax=scale.softmax,
            batch_size=scale.train_batch_size,
            max_length=scale.max_length,
            seed=scale.seed,
            precision=scale.precision,
            selection_share=scale.selection_share,
            **{
                name: getattr(scale.student, name)
                for name in ("epochs1", "learning_rate1", "epochs2", "learning_rate2")
            },
        )
        return Training("sentence encoder", recipe, digest(texts), model_digest(teacher), scale.torch_threads)

    def _plain(self, folder: Path, sentences: list[str], *, is_teacher: bool) -> Vectors:
        """Return a model's embeddings of sentences, in plaintext."""
        model = load_checkpoint(folder, embedding=True) if is_teacher else load_student(folder)
        tokenizer, n = load_tokenizer(folder), len(sentences)
        examples = Examples(list(range(n)), [(text,) for text in sentences], [0.0] * n, [EVAL] * n)
        encoded = encode(tokenizer, examples, limits=Limits.of(model.config), max_length=self.scale.max_length)
        vectors, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=EVAL_BATCH)
        return _normed(vectors)

    def _private(self, student: Path, sentences: list[str], measured: Measured) -> tuple[Vectors, dict[str, float]]:
        """Return the private embeddings of sentences, NaN where one is refused, and what they cost."""
        scale = self.scale
        asked = {"model": weights_digest(student), "texts": digest(sentences), "max_length": scale.max_length}
        asked |= {"batch_size": scale.batch_size, "engine": scale.engine}
        path = self.workplace.runs / f"embeddings-{digest(asked)[:12]}.json"
        if not path.is_file():
            answers = []
            with (
                local(student, max_length=scale.max_length, batch_size=scale.batch_size, engine=scale.engine) as ask,
                progress() as bar,
            ):
                task = bar.add_task("private embeddings", total=len(sentences), info="")
                for answer in ask.answers(sentences, details=True):
                    answers.append(answer)
                    bar.advance(task)
            write_json(path, {"asked": asked, "answers": [_kept(answer) for answer in answers]})
            measured.n_run += 1
        answers = read_json(path)["answers"]
        width = max(len(answer["embedding"] or ()) for answer in answers)
        vectors = np.array([answer["embedding"] or [np.nan] * width for answer in answers])
        cost = {
            "answered": 1.0 - float(np.isnan(vectors[:, 0]).mean()),
            "online_seconds": statistics.median(answer["online_seconds"] for answer in answers),
            "online_bytes": statistics.fmean(answer["bytes"] for answer in answers),
            "rounds": max(answer["rounds"] for answer in answers),
        }
        return vectors, cost


def compared(
    plain: Vectors, private: Vectors, rows: NDArray[np.int64], labels: Vectors, n_neighbours: int
) -> dict[str, float]:
    """Compare private embeddings with plaintext ones.

    Args:
        plain, private: (N, H) of length 1; a private one of NaN was refused.
        rows: int64 (P, 2), the sentences of each pair; those from N on were not asked for.
        labels: (P,), the similarities of the pairs.
        n_neighbours: how many nearest neighbours of each sentence are compared.
    """
    answered = ~np.isnan(private[:, 0])
    known = set(np.flatnonzero(answered).tolist())
    both = np.array([first in known and second in known for first, second in rows.tolist()])
    plain, private = plain[answered], private[answered]
    new = np.cumsum(answered) - 1
    chosen = new[rows[both]]
    same = _nearest(plain, n_neighbours)[:, :, None] == _nearest(private, n_neighbours)[:, None]
    return {
        "least_cosine": float((plain * private).sum(1).min()),
        "compared_score": _score(plain, chosen, labels[both]),
        "private_score": _score(private, chosen, labels[both]),
        "recall": float(same.any(2).mean()),
    }


def _nearest(vectors: Vectors, n: int) -> NDArray[np.int64]:
    """Return the n nearest neighbours of each vector among the others, int64 (N, n)."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :n]


def _score(vectors: Vectors, rows: NDArray[np.int64], labels: Vectors) -> float:
    cosines = (vectors[rows[:, 0]] * vectors[rows[:, 1]]).sum(1)
    return float(spearmanr(cosines, labels).statistic)


def _normed(vectors: NDArray[Any]) -> Vectors:
    found = vectors.astype(np.float64)
    normed: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return normed


def _unique(examples: Examples) -> list[str]:
    """Return the sentences of all pairs, each once, in order."""
    return list(dict.fromkeys(text for pair in examples.texts for text in pair))


def _kept(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of an answer; seconds and bytes are a sentence's share of its batch."""
    n = answer["batch"][0]
    return {
        "embedding": answer.get("embedding"),
        "online_seconds": answer["online_seconds"] / n,
        "bytes": answer["bytes"] / n,
        "rounds": answer["rounds"],
    }
