"""A checkpoint's tokenizer for one text at a time, without transformers, which takes seconds to import."""

from pathlib import Path

from tokenizers import Tokenizer

from mpcformer.errors import UserInputError
from mpcformer.files import read_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


class TextTokenizer:
    """Tokenizes as the checkpoint's Hugging Face tokenizer does.

    Args:
        folder: the checkpoint's.
        max_length: texts are cut to so many tokens, special tokens included; None cuts nothing.

    Raises:
        UserInputError: the folder has no tokenizer.json, or a damaged one.
    """

    def __init__(self, folder: Path, max_length: int | None = None) -> None:
        if not (folder / FILE).is_file():
            raise UserInputError(f"{folder} has no {FILE}", "restore the checkpoint")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises nothing more specific
            raise UserInputError(f"{folder / FILE} cannot be read: {error}", "restore the checkpoint") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        named = settings.get("pad_token", "[PAD]")
        pad = self._tokenizer.token_to_id(str(named["content"] if isinstance(named, dict) else named))
        self.pad_token_id = 0 if pad is None else int(pad)

    def ids(self, text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        """Return the ids of a text, or of a pair of texts, with special tokens, and their token types."""
        encoded = self._tokenizer.encode(text, pair or None)  # as transformers takes an empty second text
        return encoded.ids, encoded.type_ids
