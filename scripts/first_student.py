"""Make the student that comes with the package, mpcformer/students/movie-sentiment, in some minutes on two cores.

    python scripts/first_student.py

It is small, so that the package stays small and an answer takes little time. The steps are those of any student, with a
small BERT to begin with:

1. A tokenizer with those of MiniLM's pieces of words that are most frequent in the training sentences of the task, and
   with all single characters.
2. A BERT of two layers for it. Its embeddings are MiniLM's, in the directions in which they differ most.
3. A teacher: this BERT, trained on the task.
4. A student with Quad and 2Quad, distilled from the teacher.
5. The student's weights in half precision, its ranges with these weights, and its model card.

Steps 3 and 4 also get texts of several sentences, for no sentence of the task is longer than 73 tokens. In step 5 the
ranges are recorded on odd texts too: single pieces, and pieces in no order.

Run it again whenever the calibration changes. The seeds are fixed, so the same machine with as many threads gives the
same student.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging as hf_logging

from distill.ready import RUNS, engines
from distill.recipe import DistillRecipe, TeacherRecipe
from distill.student import distill_student
from distill.teacher import train_teacher
from distill.training.calibrate import calibrate
from distill.training.versions import versions
from mpcformer.engines.plaintext import predict
from mpcformer.errors import MPCFormerError
from mpcformer.files import check_new_folder, remove, sha256_file
from mpcformer.modeling import default_backbone, load_checkpoint, load_student, load_tokenizer
from mpcformer.modeling.folder import WEIGHTS, first_student
from mpcformer.modeling.tokenizer import Limits
from mpcformer.tasks import (
    EVAL,
    Encoded,
    Examples,
    carve_selection,
    compute_metrics,
    encode,
    get_task,
    load_examples,
    primary_score,
)

TASK = get_task("movie-sentiment")
PIECES, HIDDEN, LAYERS, HEADS, POSITIONS = 7000, 96, 2, 4, 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# How many texts of several sentences there are, and how long they are: about 128 tokens.
LONG_TEXTS, LONG_CHARACTERS = 600, 480
# The number of calibration texts whose pieces are drawn.
ODD_TEXTS = 500
TEACHER = {"epochs": 2, "learning_rate": 5e-4}
STUDENT = {"epochs1": 2, "epochs2": 1, "learning_rate1": 3e-4, "learning_rate2": 1e-4}
EVAL_BATCH = 64

CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: ["bert", "mpcformer", "private-inference"]
---

# The student that comes with MPCFormer

A small student for private inference, so that `mpcformer ask "A quiet film that stays with you."`
can answer right after the installation. It tells whether an English sentence about a film is
negative or positive. Its weights are here unencrypted, like those of any other model.

| | |
|---|---|
| task | movie-sentiment: one text; negative, positive |
| size | {layers} layers, {hidden} hidden, {heads} heads, {pieces:,} pieces of words, {parameters:,} parameters |
| longest text | {positions} tokens |
| forms | GeLU `quad`, softmax `2quad` |
| weights | half precision, SHA-256 `{sha256}` |

## Scores

The accuracy in plaintext on the {n_eval:,} sentences of the validation split, which nothing was
trained on:

| model | accuracy |
|---|---|
| this student | {student:.4f} |
| its teacher, a BERT of the same size | {teacher:.4f} |

`mpcformer demo` fine-tunes a whole MiniLM and distils a student of that size, which is larger and
slower.

## How it was made

    python scripts/first_student.py

That command makes this folder anew and measures the scores above. The model was trained on
{n_training:,} sentences of vaderSentiment 3.3.2 (Hutto and Gilbert, VADER, ICWSM 2014; MIT), and on
{n_long} texts that join some of them. Its embeddings began as those of all-MiniLM-L6-v2 (Apache
2.0).

| software | version |
|---|---|
{software}

## Limits

- It was trained for sentences about films, in English. It was tested for nothing else, such as
  fairness, other languages, or texts that are meant to mislead it.
- A text that takes an activation out of its calibrated range is refused, without an answer.
- In a private run, architecture, tokenizer, forms and ranges are public, and the data owner
  receives the logits.
"""


def main() -> None:
    """Make the student in the work folder, and put it into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/first-student"), help="a new folder for all steps")
    work = parser.parse_args().work
    check_new_folder(work, "--work")
    hf_logging.disable_progress_bar()
    data, bert = work / "data", work / "bert"
    n_training, n_long = save_texts(data)
    kept = save_tokenizer(bert)
    save_bert(bert, kept)
    common: dict[str, Any] = {"task": TASK.name, "data_dir": data, "max_length": POSITIONS}
    train_teacher(TeacherRecipe(model=str(bert.resolve()), **common, **TEACHER), work / "teacher")
    distill_student(DistillRecipe(teacher=work / "teacher", **common, **STUDENT), work / "student")
    facts = {"n_training": n_training, "n_long": n_long, "teacher": accuracy(work / "teacher")}
    save_small(work / "student", bert, data, work / "package", facts)
    target = first_student()
    remove(target)
    target.parent.mkdir(exist_ok=True)
    (work / "package").rename(target)
    print(f"{target} is made anew")


def save_texts(folder: Path) -> tuple[int, int]:
    """Save the training sentences, and texts of several sentences with the same label; return how many of each.

    No text of several sentences contains one that `carve_selection` sets aside by itself.
    """
    examples = load_examples(TASK, TASK.train_split)
    rows = [(text, int(label)) for (text,), label in zip(examples.texts, examples.labels, strict=True)]
    joined = long_texts(carve_selection(examples, TeacherRecipe(task=TASK.name).selection_share)[0])
    sentences, labels = zip(*rows, *joined, strict=True)
    folder.mkdir(parents=True)
    table = pa.table({"sentence": sentences, "label": labels})
    pq.write_table(table, folder / f"{TASK.train_split}.parquet")
    return len(rows), len(joined)


def long_texts(examples: Examples) -> list[tuple[str, int]]:
    """Join sentences of one label to texts that are about as long as the model can read; as many of each label."""
    found: list[tuple[str, int]] = []
    for label in range(TASK.num_labels):
        texts = [""]
        for (sentence,), its in zip(examples.texts, examples.labels, strict=True):
            if its != label:
                continue
            if len(texts[-1]) + len(sentence) > LONG_CHARACTERS:
                texts.append("")
            texts[-1] = f"{texts[-1]} {sentence}".strip()
        found += [(text, label) for text in texts[: LONG_TEXTS // TASK.num_labels]]
    return found


def save_tokenizer(folder: Path) -> list[int]:
    """Save MiniLM's tokenizer, cut to `PIECES` pieces; return their ids in MiniLM's vocabulary, in order."""
    source = load_tokenizer(default_backbone())
    vocabulary: dict[str, int] = source.get_vocab()
    texts = [text for (text,) in load_examples(TASK, TASK.train_split).texts]
    counts = Counter(piece for row in source(texts)["input_ids"] for piece in row)
    needed = {index for piece, index in vocabulary.items() if piece in SPECIAL or len(piece.removeprefix("##")) == 1}
    frequent = sorted(counts.keys() - needed, key=lambda index: (-counts[index], index))
    kept = sorted(needed | set(frequent[: PIECES - len(needed)]))
    names = {index: piece for piece, index in vocabulary.items()}
    ids = {names[index]: place for place, index in enumerate(kept)}
    model = json.loads((default_backbone() / "tokenizer.json").read_text())
    model |= {"truncation": None, "padding": None}
    model["model"]["vocab"] = ids
    for token in model["added_tokens"]:
        token["id"] = ids[token["content"]]
    for name, token in model["post_processor"]["special_tokens"].items():
        token["ids"] = [ids[name]]
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(model, ensure_ascii=False, separators=(",", ":")))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS}
    config |= {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return kept


def save_bert(folder: Path, kept: list[int]) -> None:
    """Save a small BERT with fresh layers, and with MiniLM's embeddings projected to its width.

    Args:
        folder: where its tokenizer is.
        kept: the rows of MiniLM's table of words that it has.
    """
    tables = load_file(default_backbone() / WEIGHTS)
    words = tables["embeddings.word_embeddings.weight"][kept].float()
    places = tables["embeddings.position_embeddings.weight"][:POSITIONS].float()
    mean = words.mean(0)
    directions = torch.linalg.svd(words - mean, full_matrices=False).Vh[:HIDDEN].T  # (H of MiniLM, HIDDEN)
    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=POSITIONS,
        num_labels=TASK.num_labels,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_((words - mean) @ directions)
        model.bert.embeddings.position_embeddings.weight.copy_(places @ directions)
    model.save_pretrained(folder)


def accuracy(folder: Path) -> float:
    """Return the accuracy of a model on the validation split, in plaintext."""
    model, tokenizer, examples = load_any(folder), load_tokenizer(folder), load_examples(TASK, EVAL)
    encoded = encode(tokenizer, examples, limits=Limits(POSITIONS), max_length=POSITIONS)
    logits, _ = predict(model, encoded, pad_id=tokenizer.pad_token_id, batch_size=EVAL_BATCH)
    return primary_score(compute_metrics(TASK, logits, examples.labels))


def load_any(folder: Path) -> Any:
    """Load a student or a teacher."""
    is_student = json.loads((folder / "config.json").read_text())["model_type"] == "mpcformer"
    return load_student(folder) if is_student else load_checkpoint(folder)


def save_small(student: Path, tokenizer: Path, data: Path, out: Path, facts: dict[str, Any]) -> None:
    """Save a student with weights in half precision, and with the ranges that it has with these weights.

    Args:
        student: the distilled student.
        tokenizer: the folder with its tokenizer.
        data: the folder with the texts that it was trained on.
        out: the new folder.
        facts: what the model card says besides.

    Raises:
        MPCFormerError: an engine cannot run it.
    """
    model, tokens = load_student(student), load_tokenizer(tokenizer)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    texts = encode(
        tokens, load_examples(TASK, TASK.train_split, data_dir=data), limits=Limits(POSITIONS), max_length=POSITIONS
    )
    ranges = calibrate(model, [*texts, *odd_texts(tokens)], pad_id=tokens.pad_token_id)
    verdicts = engines(model.config, ranges, model.state_dict(), POSITIONS)
    if refused := {name: verdict for name, verdict in verdicts.items() if verdict != RUNS}:
        raise MPCFormerError(f"engines refuse this student: {refused}", "lower the learning rates")
    model.save_pretrained(out)
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)  # an installation may serve several users
    ranges.save(out)
    for path in tokenizer.glob("tokenizer*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    card = CARD.format(
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        limits=Limits(POSITIONS),
        pieces=model.config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        sha256=sha256_file(out / WEIGHTS),
        n_eval=len(load_examples(TASK, EVAL)),
        student=accuracy(out),
        software="\n".join(f"| {name} | {number} |" for name, number in versions().items()),
        **facts,
    )
    (out / "README.md").write_text(card)


def odd_texts(tokenizer: Any) -> list[Encoded]:
    """Return an empty text, a text of each piece alone, and texts of all lengths whose pieces are drawn."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    pieces = [index for index in range(len(tokenizer)) if index not in (tokenizer.pad_token_id, first, last)]
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = [[], *([index] for index in pieces)]
    for n in range(ODD_TEXTS):
        length = 2 + n % (POSITIONS - 3)
        rows.append([pieces[i] for i in torch.randint(len(pieces), (length,), generator=generator).tolist()])
    return [Encoded([first, *row, last], [0] * (len(row) + 2)) for row in rows]


if __name__ == "__main__":
    main()
