"""The tokenizer without transformers gives the ids of the one with it."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mpcformer.errors import UserInputError
from mpcformer.modeling import load_tokenizer
from mpcformer.modeling.folder import first_student
from mpcformer.modeling.load import default_backbone
from mpcformer.modeling.tokenizer import Limits, TextTokenizer
from mpcformer.tasks import Examples, encode, pad_batch

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


@pytest.mark.parametrize("max_length", [None, 16])
def test_examples_are_encoded_alike_by_both(max_length: int | None) -> None:
    short = [text for text in TEXTS if len(text) < 100]
    single, pairs = [(text,) for text in short], [(a, b) for a in short for b in short[:4]]
    for texts in (single, pairs):
        examples = Examples(list(range(len(texts))), texts, [0] * len(texts), [""] * len(texts))
        known, ours = load_tokenizer(first_student()), TextTokenizer(first_student(), max_length)
        rows = (encode(each, examples, limits=Limits(128), max_length=max_length) for each in (known, ours))
        assert all(a == b for a, b in zip(*rows, strict=True))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"has no tokenizer\.json"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserInputError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer(tmp_path)
    shutil.copy(first_student() / "tokenizer.json", tmp_path)
    assert TextTokenizer(tmp_path).pad_token_id == TextTokenizer(first_student()).pad_token_id


def roberta_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def xlmr_like() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def bert_like() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


ANGLED = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
SQUARE = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
KINDS = {
    "roberta": (roberta_like, ANGLED | {"pad_token": "<pad>"}, 1, True),
    "xlm-roberta": (xlmr_like, ANGLED | {"pad_token": "<pad>"}, 1, True),
    "camembert": (xlmr_like, ANGLED | {"pad_token": "<pad>"}, 1, True),
    "mpnet": (bert_like, SQUARE, 0, True),
    "distilbert": (bert_like, SQUARE, 0, True),
    "electra": (bert_like, SQUARE, 0, False),
    "no pad token": (bert_like, {name: token for name, token in SQUARE.items() if name != "pad_token"}, 0, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_familys_tokenizer_with_and_without_transformers(tmp_path: Path, kind: str) -> None:
    make, named, pad, has_one_type = KINDS[kind]
    tokenizer = make()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(tmp_path)
    known = load_tokenizer(tmp_path)
    limits = Limits(512, tokenizer.get_vocab_size(), 1 if has_one_type else 2)
    known.save_pretrained(tmp_path / "student")
    for folder in (tmp_path, tmp_path / "student"):
        ours = TextTokenizer(folder, 32, limits)
        assert ours.pad_token_id == known.pad_token_id == pad
        texts = [(first, second) for first in TEXTS for second in (None, *TEXTS[:3])]
        for first, second in texts:
            pair = (first,) if second is None else (first, second)
            examples = Examples([0], [pair], [0.0], [""])
            (row,) = encode(known, examples, limits=limits, max_length=32)
            assert ours.ids(*pair) == (row.input_ids, row.token_type_ids), pair
            assert set(row.token_type_ids) <= ({0} if has_one_type else {0, 1})
    padded = pad_batch(encode(known, Examples([0, 1], [("x",), ("a b c",)], [0, 0], ["", ""]), limits=limits), pad)
    assert int(padded["attention_mask"].sum(1).min()) < padded["input_ids"].size(1)


def test_a_word_that_the_model_has_not_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=bert_like(), **SQUARE).save_pretrained(tmp_path)
    known = load_tokenizer(tmp_path)
    n_words = len(known)
    known.add_tokens(["zzzz"])
    known.save_pretrained(tmp_path)
    limits = Limits(64, n_words)
    assert TextTokenizer(tmp_path, limits=limits).ids("quiet film")[0]
    for refused in (
        lambda: TextTokenizer(tmp_path, limits=limits).ids("a zzzz film"),
        lambda: encode(load_tokenizer(tmp_path), Examples([0], [("a zzzz film",)], [0], [""]), limits=limits),
    ):
        with pytest.raises(UserInputError, match=rf"the tokenizer's word {n_words} is beyond the model's {n_words}"):
            refused()
