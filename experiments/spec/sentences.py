"""The sections [scale.NAME] of an experiment of kind `sentences`."""

from typing import Annotated, Literal

from pydantic import Field

from experiments.spec.outputs import Strict
from experiments.spec.quantities import Axis
from experiments.spec.scales import Engine, Gelu, Positive, Share, Softmax, StudentTraining, TaskName
from mpcformer.engines.registry import DEFAULT_ENGINE


class SentencesScale(Strict):
    """A scale of an experiment that distils a sentence encoder and asks it for embeddings.

    Args:
        backbone: the sentence encoder, which is the teacher: "made-up" (tiny and random), "minilm", a folder, or a
            model of the hub.
        data: "made-up" sentences, or "real" ones from --data-dir or the hub.
        task: a task of pairs of sentences with a similarity. The student learns from the sentences alone.
        train_limit, eval_limit: the number of pairs for training and for evaluation; by default all.
        texts: how many of the evaluated sentences are also asked for privately, the first ones.
        neighbours: how many nearest neighbours of each of these sentences are compared.
        gelu, softmax: the student's forms.
        student: how it is distilled.
        batch_size: the most sentences that share every round.
        train_batch_size: the sentences of a training step.
        max_length: the number of tokens to cut sentences to.
        selection_share: the share of the training sentences that is set aside to choose epochs by.
        seed: determines everything that is drawn at random.
        engine: the engine.
        precision: of the training.
        torch_threads: the number of torch's threads in the training; by default torch's own choice.
    """

    backbone: str = "minilm"
    data: Literal["made-up", "real"] = "real"
    task: TaskName = "stsb"
    train_limit: Positive | None = None
    eval_limit: Positive | None = None
    texts: Annotated[int, Field(ge=2)] = 1000
    neighbours: Positive = 10
    gelu: Gelu = "quad"
    softmax: Softmax = "2quad"
    student: StudentTraining = StudentTraining()
    batch_size: Positive = 16
    train_batch_size: Positive = 32
    max_length: Positive = 128
    selection_share: Share = 0.05
    seed: int = 0
    engine: Engine = DEFAULT_ENGINE
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    torch_threads: Positive | None = None

    def axes(self) -> dict[Axis, int]:
        """Return the number of points on each axis: the teacher and the student."""
        return {"model": 2}
