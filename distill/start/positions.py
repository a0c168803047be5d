"""Give the positions that hardly any training text reaches the embeddings of positions that the training knows.

A student's weights are fitted and trained on the lengths of the training texts. The embeddings of later positions are
still the teacher's, and the student makes nothing sensible of them: scores there are some ten times as large as usual.
"""

from collections.abc import Sequence

import torch

from mpcformer.modeling import MPCFormerForSequenceClassification
from mpcformer.tasks import Encoded

# A position is known if this share of the training texts reaches it, or ENOUGH_TEXTS of them.
SHARE, ENOUGH_TEXTS = 0.02, 100


def known_positions(encoded: Sequence[Encoded]) -> int:
    """Return how many positions, from the first on, enough of the training texts reach."""
    lengths = sorted((len(row.input_ids) for row in encoded), reverse=True)
    enough = max(1, min(ENOUGH_TEXTS, round(SHARE * len(lengths))))
    return lengths[enough - 1]


@torch.no_grad()
def repeat_positions(student: MPCFormerForSequenceClassification, known: int) -> None:
    """Replace the embeddings of all positions from `known` on by those of the positions 1 to known - 1, over and over.

    Position 0 is left out because it belongs to [CLS] alone.

    Source: Beltagy et al., Longformer, 2020, section 5, which starts the embeddings of new positions in this way.
    """
    table = student.bert.embeddings.position_embeddings.weight
    if known < 2:
        return
    unknown = torch.arange(known, len(table), device=table.device)
    table[known:] = table[1 + (unknown - known) % (known - 1)]
