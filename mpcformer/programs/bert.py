"""A BERT student as a program, which `mpcformer run` plays; the engine `crypten` plays the same one in sessions.

Both owners have a program's file, and the public part of the student (config.json, ranges.json and the tokenizer):

    from pathlib import Path
    from mpcformer.programs.bert import bert_program

    bert = bert_program(Path(__file__).with_name("student"), lengths=[12, 7])

`bert_parameters` makes the model owner's input, and `bert_words` the data owner's:

    save_file(bert_parameters(folder), "parameters.safetensors")
    words, lengths = bert_words(folder, texts)
    np.save("words.npy", words.numpy())
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mpcformer.engines.base import load_public_model
from mpcformer.engines.crypten import bert_program as general
from mpcformer.engines.crypten.constants import constants_of
from mpcformer.engines.crypten.parameters import parameter_values
from mpcformer.engines.crypten.program import Program
from mpcformer.errors import UserInputError
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.modeling.weights_file import load_weights


def bert_program(folder: Path, lengths: Sequence[int]) -> Program:
    """Return the program that answers texts of these lengths.

    The model owner puts in `parameters`, and the data owner `words`. The data owner learns `outcome`, which has a row
    for each text: its logits, and behind them 1 if an activation left its calibrated range, else 0. Then the logits
    are 0. If the student has a head for each token, a row has the logits of all positions one after the other.

    Args:
        folder: of the student; config.json and ranges.json are enough.
        lengths: the number of tokens of each text, which all parties learn.

    Raises:
        UserInputError: the folder holds no student, or no model of it has such a text.
        RangeError: ranges that fixed point cannot carry.
    """
    public = load_public_model(folder)
    longest = public.config.max_position_embeddings
    if not lengths or not all(1 <= n <= longest for n in lengths):
        raise UserInputError(
            f"bert_program: {list(lengths)} are not the lengths of texts", f"give some, of 1 to {longest} tokens each"
        )
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    constants, facts = constants_of(public), json.dumps(public.facts(), sort_keys=True)
    agreed = {
        "model": hashlib.sha256(facts.encode()).hexdigest(),
        "constants": constants.digest(),
        "lengths": json.dumps(list(lengths)),
    }
    asked = torch.ones(len(lengths), dtype=torch.bool)
    return general.declare(public.config, constants, mask, asked, agreed=agreed)


def bert_parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Return a student's parameters, float32 by their names, which are the model owner's input.

    Args:
        folder: of the student.

    Raises:
        UserInputError: the folder holds no student.
        RangeError: weights that fixed point cannot carry.
    """
    public = load_public_model(folder)
    values = parameter_values(public.config, constants_of(public), load_weights(folder))
    # A file of safetensors takes no two tensors that share memory, such as the layers of ALBERT.
    return {name: tensor.float().clone(memory_format=torch.contiguous_format) for name, tensor in values.items()}


def bert_words(folder: Path, texts: Sequence[str]) -> tuple[torch.Tensor, list[int]]:
    """Return texts as the data owner's input, and their lengths in tokens, which the program's file tells.

    Args:
        folder: of the student; config.json, ranges.json and the tokenizer are enough.
        texts: the texts.

    Returns:
        A row for each position of each text: int8 (B L, V + T), for V words and T token types.

    Raises:
        UserInputError: the folder holds no student, or a text is too long.
    """
    config = load_public_model(folder).config
    tokenizer = TextTokenizer(folder, limits=Limits.of(config))
    rows = [tokenizer.ids(text) for text in texts]
    lengths = [len(ids) for ids, _ in rows]
    longest = max(lengths, default=0)
    if not 1 <= longest <= config.max_position_embeddings:
        raise UserInputError(
            f"bert_words: the longest text has {longest} tokens", f"give texts of 1 to {config.max_position_embeddings}"
        )
    ids, types = (
        torch.tensor([row[part] + [fill] * (longest - len(row[part])) for row in rows])
        for part, fill in enumerate((tokenizer.pad_token_id, 0))
    )
    return general.unit_vectors(config, ids, types).to(torch.int8), lengths
