"""Make a tiny model and made-up sentences, for a scale that shows within a minute that everything runs.

Both are deterministic.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from mpcformer.run_folder import RunFolder
from mpcformer.tasks import Task

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# The words that tell the classes apart, in label order. The labels of a regression are the ends of its range.
TELLING = (
    ["dull", "cold", "grim", "tired", "faint", "harsh"],
    ["fine", "bright", "warm", "lovely", "keen", "calm"],
    ["round", "square", "tall", "wide", "near", "far"],
)
PLAIN = ["the", "a", "day", "stone", "river", "was", "and", "very", "it", "rather", "house", "of", "garden", "then"]
WORDS = [*SPECIAL, *(word for words in TELLING for word in words), *PLAIN]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
POSITIONS = 64
N_TRAIN, N_EVAL = 512, 64
N_PLAIN, N_TELLING = (2, 8), (2, 4)


def write_model(folder: Path) -> Path:
    """Write a random BERT of 2 layers with a tokenizer of whole words, unless the folder exists; return the folder."""
    if folder.is_dir():
        return folder
    hf_logging.disable_progress_bar()
    with RunFolder(folder).filled() as out, torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS), max_position_embeddings=POSITIONS, initializer_range=0.1, num_labels=2, **SHAPE
        )
        BertForSequenceClassification(config).save_pretrained(out)
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(out)
    return folder


def write_data(folder: Path, task: Task) -> Path:
    """Write the task's splits with made-up texts to `folder/TASK`, unless that folder exists. The splits differ.

    Returns:
        `folder`, which can be given as --data-dir.
    """
    target = folder / task.name
    if not target.is_dir():
        generator = torch.Generator().manual_seed(1)
        with RunFolder(target).filled() as out:
            for split, n in ((task.train_split, N_TRAIN), *((split, N_EVAL) for split in task.eval_splits)):
                pq.write_table(pa.table(_columns(task, n, generator)), out / f"{split}-00000-of-00001.parquet")
    return folder


def _columns(task: Task, n: int, generator: torch.Generator) -> dict[str, list[Any]]:
    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def one(words: list[str]) -> str:
        return words[pick(0, len(words))]

    columns: dict[str, list[Any]] = {name: [] for name in (*task.text_columns, task.label_column)}
    low, high = task.label_range
    for row in range(n):
        label = row % (task.num_labels if task.labels else 2)
        for name in task.text_columns:
            words = [one(PLAIN) for _ in range(pick(*N_PLAIN))]
            for _ in range(pick(*N_TELLING)):
                words.insert(pick(0, len(words) + 1), one(TELLING[label]))
            columns[name].append(" ".join(words))
        columns[task.label_column].append(label if task.labels else (high if label else low))
    return columns
