"""New texts out of a batch's own, which nobody has to label: a teacher says what it makes of any text.

A teacher has its training texts by heart; a student that matches it on those alone learns them by heart too, and
follows it less on others. In about half of a batch's rows some tokens are replaced by others of the batch, drawn as
often as they occur in it. After the augmentation of Jiao et al., TinyBERT, EMNLP 2020, without its language model.
"""

from collections.abc import Sequence

import torch

ROWS = 0.5


def replace_tokens(
    input_ids: torch.Tensor, mask: torch.Tensor, special: Sequence[int], share: float, seed: int
) -> torch.Tensor:
    """Token ids with some replaced, on the processor: the same seed and batch give the same on any device.

    Args:
        input_ids, mask: (B, L), int64.
        special: ids that stay, and stand in for none: [CLS], [SEP] and the like.
        share: of a chosen row's tokens, 0..1.
        seed: decides rows, tokens and what stands in for them.

    Returns:
        (B, L), int64.
    """
    real = mask.bool() & ~torch.isin(input_ids, torch.tensor(list(special)))
    pool = input_ids[real]
    if not len(pool):
        return input_ids
    generator = torch.Generator().manual_seed(seed)
    others = pool[torch.randint(len(pool), input_ids.shape, generator=generator)]
    rows = torch.rand(len(input_ids), 1, generator=generator) < ROWS
    chosen = real & rows & (torch.rand(input_ids.shape, generator=generator) < share)
    return torch.where(chosen, others, input_ids)
