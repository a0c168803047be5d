"""A tiny random BERT with a word-level tokenizer, a made-up data set and a tiny student, all made within seconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from distill.start.deviations import set_deviations
from distill.training.calibrate import calibrate
from mpcformer.modeling import (
    MPCFormerConfig,
    MPCFormerForSequenceClassification,
    load_checkpoint,
    load_tokenizer,
)
from mpcformer.modeling.precision import WIDE
from mpcformer.modeling.save import round_weights
from mpcformer.modeling.save import save_student as write_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import encode, get_task, load_examples

GOOD, BAD = ["fine", "bright", "warm", "lovely"], ["dull", "cold", "grim", "tired"]
PLAIN = ["the", "a", "day", "stone", "river", "was", "and", "very", "it", "rather"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN]

# The options of a recipe that trains on the made-up data set within seconds.
TRAINING: dict[str, Any] = {
    "task": "sst2",
    "batch_size": 8,
    "max_length": 32,
    "precision": "fp32",
    "selection_share": 0.15,
}


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def save_bert(folder: Path, *, num_labels: int = 2, seed: int = 0, **changes: Any) -> Path:
    """Save a random BertForSequenceClassification with a tokenizer, and return its folder."""
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
        "num_labels": num_labels,
    }
    torch.manual_seed(seed)
    BertForSequenceClassification(BertConfig(**(settings | changes))).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentences(n: int) -> list[tuple[str, int]]:
    """Return n different made-up sentences; the label says whether the sentiment words are good."""
    rows = []
    for i in range(n):
        label = i % 2
        words = (GOOD if label else BAD)[i % 4], PLAIN[i % 10], PLAIN[(i // 3) % 10], PLAIN[(i // 7) % 10]
        rows.append((" ".join([*words, *PLAIN[: i % 9]]), label))
    return rows


def save_parquet(folder: Path, *, n_train: int = 96, n_eval: int = 12, task: str = "sst2") -> Path:
    """Save the made-up sentences as train and validation splits; mrpc and stsb get text pairs. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n, start in (("train", n_train, 0), ("validation", n_eval, n_train)):
        rows = sentences(n_train + n_eval)[start : start + n]
        texts, labels = [text for text, _ in rows], [label for _, label in rows]
        columns: dict[str, list[Any]] = {"sentence": texts, "label": labels}
        if task != "sst2":
            columns = {"sentence1": texts, "sentence2": texts[::-1], "label": labels}
        if task == "stsb":
            columns["label"] = [5.0 * label for label in labels]
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def save_student(
    folder: Path,
    data: Path,
    *,
    task: str = "sst2",
    gelu: str = "quad",
    softmax: str = "2quad",
    constant_norms: Sequence[str] = (),
    strides: Sequence[int] = (),
    head_size: int | None = None,
    seed: int = 0,
    precision: str = WIDE,
    weight_bits: int | None = None,
    **changes: Any,
) -> Path:
    """Save an untrained student with the given forms, calibrated on the made-up training split; return its folder.

    Args:
        folder: the folder for the student; its teacher is saved beside it.
        data: the folder of the made-up data set.
        task: the student's task.
        gelu: the form of GeLU.
        softmax: the form of softmax.
        constant_norms: the LayerNorms that divide by a constant.
        strides: by layer, of how many positions it keeps one.
        head_size: the size of an attention head. If it is given, the student has random weights instead of its
            teacher's, because a BERT cannot have a head size of its own.
        seed: determines the weights.
        precision: wide or compact.
        weight_bits: the bits to which the weights are rounded; None: they are not.
        **changes: other fields of the configuration.
    """
    source = folder.with_name(f"{folder.name}-teacher")
    n_heads = changes.pop("num_attention_heads", 4)
    save_bert(source, num_labels=get_task(task).num_labels, seed=seed, **changes)
    model = load_checkpoint(
        source, gelu=gelu, softmax=softmax, task=task, constant_norms=constant_norms, strides=strides
    )
    if head_size is not None:
        torch.manual_seed(seed)
        config = MPCFormerConfig(**(model.config.to_dict() | {"num_attention_heads": n_heads, "head_size": head_size}))
        model = MPCFormerForSequenceClassification(config).eval()
    for n, layer in enumerate(model.bert.layers):
        if layer.attention["self"].log_divisor is not None:  # the layers have different divisors, as after a training
            layer.attention["self"].log_divisor.data += 0.3 - 0.5 * n
    model.config.precision = precision
    rounded = None if weight_bits is None else round_weights(model, weight_bits)
    tokenizer = load_tokenizer(source)
    encoded = encode(tokenizer, load_examples(get_task(task), "train", data_dir=data), limits=Limits(32))
    set_deviations(model, load_checkpoint(source), encoded, pad_id=tokenizer.pad_token_id)
    ranges = calibrate(model, encoded, pad_id=tokenizer.pad_token_id)
    write_student(model, folder, rounded)
    save_tokenizer(folder)
    ranges.save(folder)
    (folder / "distillation.json").write_text(
        json.dumps({"recipe": {"seed": seed}, "teacher": {"folder": str(source)}})
    )
    return folder
