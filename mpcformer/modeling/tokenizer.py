"""A checkpoint's tokenizer for one text at a time, without transformers, which takes seconds to import."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.modeling.limits import read_object

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Limits:
    """What a model can read of what a tokenizer makes.

    Args:
        positions: the number of tokens in the longest text.
        words: the number of words; None for any number.
        types: the number of token types. A model with one gives all tokens that one, as RoBERTa does.
    """

    positions: int
    words: int | None = None
    types: int = 2

    @classmethod
    def of(cls, config: Any) -> "Limits":
        """Return the limits of a model with this configuration, or with this description."""
        return cls(config.max_position_embeddings, config.vocab_size, config.type_vocab_size)

    def checked(self, ids: list[int], types: list[int]) -> tuple[list[int], list[int]]:
        """Return the ids and token types of a text as the model takes them.

        Raises:
            UserInputError: the tokenizer has more words or more token types than the model.
        """
        if self.words is not None and max(ids, default=0) >= self.words:
            raise UserInputError(
                f"the tokenizer's word {max(ids)} is beyond the model's {self.words} words",
                "use the tokenizer that the model was trained with, or resize the model's embeddings and train it",
            )
        if self.types == 1:
            return ids, [0] * len(ids)
        if max(types, default=0) >= self.types:
            raise UserInputError(
                f"the tokenizer's token type {max(types)} is beyond the model's {self.types} token types",
                "use the tokenizer that the model was trained with",
            )
        return ids, types


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise of a damaged tokenizer, `what`, into an error; one of them even panics."""
    try:
        yield
    except (MPCFormerError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserInputError(f"{what} cannot be read ({type(error).__name__})", "restore the checkpoint") from None


class TextTokenizer:
    """Tokenizes as the checkpoint's Hugging Face tokenizer does.

    Args:
        folder: the checkpoint's.
        max_length: texts are cut to so many tokens, special tokens included; None cuts nothing.
        limits: what the model can read; None checks nothing.

    Raises:
        UserInputError: the folder has no tokenizer.json, or a damaged one.
    """

    def __init__(self, folder: Path, max_length: int | None = None, limits: Limits | None = None) -> None:
        self._limits = limits
        if not (folder / FILE).is_file():
            raise UserInputError(f"{folder} has no {FILE}", "restore the checkpoint")
        self._file = str(folder / FILE)
        with tokenizer_errors(self._file):
            self._tokenizer = Tokenizer.from_file(self._file)
            self._tokenizer.encode("a")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        settings = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        named = settings.get("pad_token", "[PAD]")
        pad = self._tokenizer.token_to_id(str(named["content"] if isinstance(named, dict) else named))
        self.pad_token_id = 0 if pad is None else int(pad)

    def ids(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """Return the ids of a text, or of a pair of texts, with special tokens, and their token types.

        Raises:
            UserInputError: the tokenizer has more words than the model.
        """
        with tokenizer_errors(self._file):
            encoded = self._tokenizer.encode(text, pair or None)  # as transformers takes an empty second text
        if self._limits is None:
            return encoded.ids, encoded.type_ids
        return self._limits.checked(encoded.ids, encoded.type_ids)
