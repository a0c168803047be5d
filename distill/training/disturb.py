"""Make texts that are unlike the training texts, so that calibrated ranges also cover what else people will ask.

People ask shorter and longer texts than those of the training set, other words, the same word many times over, figures
and punctuation. Ranges that were recorded on the training texts alone are too narrow for them. No text made here needs
a label, and none is trained on.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcformer.tasks import Encoded

# The chance that a changed text drops a token, doubles it, or has another one in its place; and the chance that its
# tokens are shuffled.
DROPPED, DOUBLED, REPLACED, SHUFFLED = 0.15, 0.15, 0.15, 0.5
# The share of special tokens in a text in which they are written out.
WRITTEN_OUT = 0.5
# A repeated text has at most this many different tokens.
MOST_REPEATED = 3
# The kinds of text, the one that is asked most first.
KINDS = ("joined", "changed", "any words", "marks", "special", "repeated")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer by kind.

    Args:
        words: the ids of all tokens that are not special.
        marks: those of them that have no letter, such as digits and punctuation; all words if there are none.
        special: the ids of special tokens, which a text may also have written out.
        frame: those of them that the tokenizer puts around the words of every text, such as [CLS] and [SEP].
    """

    words: torch.Tensor
    marks: torch.Tensor
    special: torch.Tensor
    frame: frozenset[int]

    @staticmethod
    def of(tokenizer: Any) -> "Vocabulary":
        """Sort the tokens of a Hugging Face tokenizer."""
        special = set(tokenizer.all_special_ids)
        words = {piece: i for piece, i in sorted(tokenizer.get_vocab().items()) if i not in special}
        marks = sorted(i for piece, i in words.items() if not any(character.isalpha() for character in piece))
        frame = {tokenizer.cls_token_id, tokenizer.sep_token_id} - {None}
        ordinary = torch.tensor(sorted(words.values()))
        without_letter = torch.tensor(marks) if marks else ordinary
        return Vocabulary(ordinary, without_letter, torch.tensor(sorted(special)), frozenset(frame))


def disturbed(
    encoded: Sequence[Encoded], vocabulary: Vocabulary, *, n: int, positions: int, seed: int
) -> dict[str, list[Encoded]]:
    """Return `n` new texts by kind, equally many of each kind.

    Their lengths are distributed evenly on a logarithmic scale, from a single word to all positions of the model. The
    kinds are "joined" (training texts one after the other), "changed" (the same with words dropped, doubled, replaced
    and shuffled), "any words" (tokens of the vocabulary), "marks" (digits and punctuation), "special" (special tokens
    written out between words) and "repeated" (a few words over and over).

    Args:
        encoded: the training texts; the new texts have their columns.
        vocabulary: the tokens to draw from.
        n: the number of new texts.
        positions: the tokens of the longest new texts, the special ones included.
        seed: determines everything that is drawn.
    """
    templates = [row for row in encoded if set(row.input_ids) - vocabulary.frame]
    if not templates:
        return {}
    draw = _Draw([t for row in templates for t in row.input_ids if t not in vocabulary.frame], vocabulary, seed)
    makers: tuple[Callable[[int], torch.Tensor], ...] = (
        draw.joined,
        draw.changed,
        lambda length: draw.among(vocabulary.words, length),
        lambda length: draw.among(vocabulary.marks, length),
        draw.special,
        draw.repeated,
    )
    made: dict[str, list[Encoded]] = {kind: [] for kind in KINDS}
    for kind, make in itertools.islice(itertools.cycle(zip(KINDS, makers, strict=True)), n):
        template = templates[draw.below(len(templates))]
        n_frame = sum(token in vocabulary.frame for token in template.input_ids)
        n_slots = len(_slots(template, vocabulary.frame))
        length = max(n_slots, round(math.exp(draw.unit() * math.log(max(1, positions - n_frame)))))
        cuts = sorted(1 + draw.below(max(1, length - 1)) for _ in range(n_slots - 1))
        made[kind].append(_framed(template, make(length).tolist(), cuts, vocabulary.frame))
    return made


class _Draw:
    """Draws words for texts.

    Args:
        stream: the words of all training texts, one text after the other.
        vocabulary, seed: as in `disturbed`.
    """

    def __init__(self, stream: list[int], vocabulary: Vocabulary, seed: int) -> None:
        self._stream, self._vocabulary = torch.tensor(stream), vocabulary
        # On the CPU, so that the same texts are drawn on any device.
        self._generator = torch.Generator().manual_seed(seed)

    def unit(self) -> float:
        """Return a number in 0..1."""
        return float(torch.rand((), generator=self._generator))

    def below(self, end: int) -> int:
        """Return one of 0..end - 1."""
        return int(torch.randint(end, (), generator=self._generator))

    def among(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Return `length` of the tokens, each drawn from all of them."""
        return tokens[torch.randint(len(tokens), (length,), generator=self._generator)]

    def joined(self, length: int) -> torch.Tensor:
        """Return consecutive words of the training texts; behind the last text comes the first again."""
        start = self.below(len(self._stream))
        return self._stream[torch.arange(start, start + length) % len(self._stream)]

    def changed(self, length: int) -> torch.Tensor:
        """Return consecutive words of the training texts, some of them dropped, doubled, replaced or shuffled."""
        words = self.joined(2 * length)
        fate = torch.rand(len(words), generator=self._generator)
        words = torch.where(fate < REPLACED, self.among(self._vocabulary.words, len(words)), words)
        times = torch.ones(len(words), dtype=torch.int64)
        times[(fate >= REPLACED) & (fate < REPLACED + DROPPED)] = 0
        times[fate >= 1 - DOUBLED] = 2
        words = torch.cat([words.repeat_interleave(times), self.joined(length)])[:length]
        shuffled = self.unit() < SHUFFLED
        return words[torch.randperm(len(words), generator=self._generator)] if shuffled else words

    def repeated(self, length: int) -> torch.Tensor:
        """Return one to MOST_REPEATED words, of the training texts or of the vocabulary, over and over."""
        source = self._stream if self.unit() < 0.5 else self._vocabulary.words
        return self.among(self.among(source, 1 + self.below(MOST_REPEATED)), length)

    def special(self, length: int) -> torch.Tensor:
        """Return words of the training texts, and special tokens in the place of some of them."""
        chosen = torch.rand(length, generator=self._generator) < WRITTEN_OUT
        return torch.where(chosen, self.among(self._vocabulary.special, length), self.joined(length))


def _slots(template: Encoded, frame: frozenset[int]) -> list[int]:
    """Return the places at which a run of words begins: one for each text of an example, unless it is empty."""
    framing = [True, *(token in frame for token in template.input_ids)]
    return [place for place, (before, now) in enumerate(itertools.pairwise(framing)) if before and not now]


def _framed(template: Encoded, words: list[int], cuts: list[int], frame: frozenset[int]) -> Encoded:
    """Put new words, cut into as many parts as the template has texts, in the place of the template's words."""
    ids: list[int] = []
    types: list[int] = []
    parts = {
        place: words[start:end]
        for place, start, end in zip(_slots(template, frame), [0, *cuts], [*cuts, len(words)], strict=True)
    }
    for place, (token, kind) in enumerate(zip(template.input_ids, template.token_type_ids, strict=True)):
        new = [token] if token in frame else parts.get(place, [])
        ids, types = ids + new, types + [kind] * len(new)
    return Encoded(ids, types)
