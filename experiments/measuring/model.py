"""Provide a model to measure, from a student's folder or with random weights, and sentences of a fixed length.

The computation does not depend on the values of the weights. The sizes of the tables depend on the calibrated ranges,
which may be wider for a trained student than for random weights.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging as hf_logging

from distill.training.calibrate import calibrate
from experiments.spec.shapes import SHAPES
from mpcformer.engines.registry import ENGINES
from mpcformer.errors import UserInputError
from mpcformer.modeling import (
    MPCFormerConfig,
    MPCFormerForSequenceClassification,
    default_backbone,
    load_tokenizer,
)
from mpcformer.modeling.description import carries_compact
from mpcformer.modeling.folder import read_config, require_student
from mpcformer.modeling.precision import COMPACT, WEIGHT_BITS, WIDE
from mpcformer.modeling.save import round_weights, save_student
from mpcformer.tasks import Encoded

N_CALIBRATION = 8
POSITIONS = 512
TASK = "sst2"


def check_shape(model: str, seq_len: int, batch_size: int) -> None:
    """Refuse a batch that the model cannot read.

    Args:
        model: a name in `SHAPES`, or a student's folder.
        seq_len: tokens of a sentence.
        batch_size: sentences of a batch.

    Raises:
        UserInputError: a number is too small, or the model has fewer positions than seq_len.
    """
    for name, value, low in (("seq-len", seq_len, 4), ("batch-size", batch_size, 1)):
        if value < low:
            raise UserInputError(f"--{name}: {value} is below {low}", f"give {low} or more")
    positions = POSITIONS
    if Path(model).is_dir() and model not in SHAPES:
        config = read_config(Path(model))
        require_student(Path(model), config)
        positions = config.get("max_position_embeddings", POSITIONS)
    if seq_len > positions:
        raise UserInputError(f"--seq-len: {seq_len} exceeds {positions} positions", f"give at most {positions}")


def check_engines(engines: Sequence[str]) -> None:
    """Refuse an unknown engine.

    Raises:
        UserInputError: an engine is unknown.
    """
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown:
        raise UserInputError(f"--engine: {unknown[0]!r} is unknown", f"choose one of: {', '.join(ENGINES)}")


@contextmanager
def bench_model(
    model: str,
    layers: int | None,
    seq_len: int,
    gelu: str = "quad",
    softmax: str = "2quad",
    constant_norms: Sequence[str] = (),
    strides: Sequence[int] = (),
    precision: str | None = WIDE,
) -> Iterator[Path]:
    """Yield a student's folder: the given one, or a temporary one with random weights.

    The ranges of a random student are calibrated on random sentences.

    Args:
        model: a name in `SHAPES`, or a student's folder, which is yielded as it is.
        layers: encoder layers of a named model; None means all.
        seq_len: tokens of a calibration sentence.
        gelu, softmax: the forms of a named model.
        constant_norms: LayerNorms of a named model that divide by a constant: attention, output, all, or names.
        strides: of a named model: by layer, of how many positions it keeps one; empty: all are kept.
        precision: of a named model: wide, or compact, with weights of 8 bits; None: compact where it carries the forms.

    Raises:
        UserInputError: model is neither a name nor a folder, or layers is given for a folder or is below 1.
    """
    if model not in SHAPES:
        if not Path(model).is_dir():
            raise UserInputError(f"--model: {model!r} is unknown", f"give a folder, or one of: {', '.join(SHAPES)}")
        if layers is not None:
            raise UserInputError("--layers: a checkpoint has its own number of layers", "leave --layers out")
        yield Path(model)
        return
    if layers is not None and layers < 1:
        raise UserInputError(f"--layers: {layers} is below 1", "give a positive number")
    with tempfile.TemporaryDirectory() as work, torch.random.fork_rng():
        torch.manual_seed(0)
        shape: dict[str, Any] = SHAPES[model] | ({"num_hidden_layers": layers} if layers else {})
        if precision is None:
            precision = COMPACT if carries_compact(gelu, softmax, constant_norms) else WIDE
        shape |= {"gelu": gelu, "softmax": softmax, "constant_norms": constant_norms, "precision": precision}
        shape |= {"strides": strides}
        config = MPCFormerConfig(task=TASK, num_labels=2, **shape)
        student = MPCFormerForSequenceClassification(config).eval()
        weights = round_weights(student, WEIGHT_BITS) if precision == COMPACT else None
        ids = torch.randint(1000, config.vocab_size, (N_CALIBRATION, seq_len)).tolist()
        ranges = calibrate(student, [Encoded(row, [0] * seq_len) for row in ids], pad_id=0)
        folder = Path(work)
        hf_logging.disable_progress_bar()
        save_student(student, folder, weights)
        load_tokenizer(default_backbone()).save_pretrained(folder)
        ranges.save(folder)
        del student
        yield folder


def random_sentences(folder: Path, n: int, seq_len: int) -> None:
    """Write n random sentences of seq_len tokens each as the validation split of the task `TASK`.

    Every word is one token; [CLS] and [SEP] are included in seq_len.
    """
    vocabulary = load_tokenizer(default_backbone()).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(words), (n, seq_len - 2), generator=generator).tolist()
    columns = {"sentence": [" ".join(words[i] for i in row) for row in picks], "label": [i % 2 for i in range(n)]}
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "validation-00000-of-00001.parquet")
