"""How a classifier asks. Nothing here loads torch, so that wrong options are refused, and parties started, at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpcformer.errors import UserInputError

# The lengths that texts are padded to. The sizes of batches are the powers of SIZE_STEP.
LENGTHS = (16, 32, 64, 128, 256, 512)
SIZE_STEP = 4
LARGEST = 16


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Return the sizes of batches of at most so many texts: 1, 4, 16 and so on, and `largest` itself."""
    sizes = {largest}
    size = 1
    while size < largest:
        sizes.add(size)
        size *= SIZE_STEP
    return tuple(sorted(sizes))


@dataclass(frozen=True)
class AskOptions:
    """How a classifier asks.

    Args:
        max_length: the number of tokens to cut texts to; None refuses texts that exceed the model's positions.
        lengths: the lengths that texts are padded to; the model's positions come after the last.
        largest: the most texts in a batch.
        ahead: how many batches of the shapes asked for last are dealt while nobody asks.
        first: the shape (texts, tokens) that is dealt when a session begins, before anybody has asked.
        deal_ahead: the number of batches of the shape `first` to deal before the first text is read, after which the
            dealer leaves; None keeps the dealer for as long as the session lasts. All texts are then asked in batches
            of that shape.
    """

    max_length: int | None = None
    lengths: tuple[int, ...] = LENGTHS
    largest: int = LARGEST
    ahead: int = 2
    first: tuple[int, int] = (1, 32)
    deal_ahead: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of batches."""
        return sizes_up_to(self.largest) if self.deal_ahead is None else (self.first[0],)

    @property
    def padded_lengths(self) -> tuple[int, ...]:
        """The lengths that texts are padded to."""
        return self.lengths if self.deal_ahead is None else (self.first[1],)


def checked_options(
    max_length: int | None,
    batch_size: int,
    ahead: int,
    first: tuple[int, int],
    deal_ahead: int | None,
    lengths: Sequence[int] | None,
) -> AskOptions:
    """Return the options of a classifier.

    Raises:
        UserInputError: one of them is out of range; the error names it.
    """
    numbers: dict[str, tuple[int | None, int, int]] = {
        "batch_size": (batch_size, 1, 1024),
        "ahead": (ahead, 0, 1 << 16),
        "first, texts": (first[0], 1, batch_size),
        "first, tokens": (first[1], 1, 1 << 16),
        "deal_ahead": (deal_ahead, 1, 1 << 20),
    }
    for name, (value, low, high) in numbers.items():
        if value is not None and not low <= value <= high:
            raise UserInputError(f"{name}: {value} is outside {low}..{high}", "give a number from there")
    defaults = AskOptions()
    chosen = tuple(sorted(set(lengths))) if lengths else defaults.lengths
    if min(chosen) < 1:
        raise UserInputError(f"lengths: {min(chosen)} is below 1", "give numbers of tokens")
    if deal_ahead is None and first[0] not in sizes_up_to(batch_size):
        known = ", ".join(map(str, sizes_up_to(batch_size)))
        raise UserInputError(f"first, texts: {first[0]} is no size of a batch", f"choose one of: {known}")
    return AskOptions(max_length, chosen, batch_size, ahead, first, deal_ahead)
