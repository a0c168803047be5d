"""The tokenizer without transformers gives the ids of the one with it."""

import shutil
from pathlib import Path

import pytest

from mpcformer.errors import UserInputError
from mpcformer.modeling import load_tokenizer
from mpcformer.modeling.folder import first_student
from mpcformer.modeling.load import default_backbone
from mpcformer.modeling.tokenizer import TextTokenizer

TEXTS = [
    "A quiet film that stays with you.",
    "",
    " ",
    "x",
    "ÀÉÎ naïve café",
    "日本語のテキスト and مرحبا",
    "\x00\x07\u200b\ufffd tab\tline\nfeed",
    "\U0001f600 \U0001f525",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s>",
    "don't can't 3.14 1,000,000 #@!?...",
    "unbelievably-long-" * 60,
]


@pytest.mark.parametrize("max_length", [None, 8, 32])
def test_both_tokenizers_agree(max_length: int | None) -> None:
    for folder in (first_student(), default_backbone()):
        known, ours = load_tokenizer(folder), TextTokenizer(folder, max_length)
        assert ours.pad_token_id == known.pad_token_id
        for first in TEXTS:
            for second in (None, *TEXTS[:3], TEXTS[-1]):
                row = known(
                    first,
                    second,
                    return_token_type_ids=True,
                    truncation=max_length is not None,
                    max_length=max_length,
                    verbose=False,
                )
                assert ours.ids(first, second) == (row["input_ids"], row["token_type_ids"]), (first, second)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"has no tokenizer\.json"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserInputError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer(tmp_path)
    shutil.copy(first_student() / "tokenizer.json", tmp_path)
    assert TextTokenizer(tmp_path).pad_token_id == TextTokenizer(first_student()).pad_token_id
