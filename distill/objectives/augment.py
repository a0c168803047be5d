"""Make new texts from the texts of a batch; they need no labels, because the teacher gives its logits for any text.

A teacher has memorised its training texts. A student that matches it on these texts alone memorises them too, and
follows its teacher less closely on other texts. Therefore some tokens are replaced in about half of a batch's rows, by
tokens drawn from the batch with the frequency that they have there. This follows the augmentation of Jiao et al.,
TinyBERT, EMNLP 2020, without its language model.
"""

from collections.abc import Sequence

import torch

# The fraction of rows in which tokens are replaced.
ROWS = 0.5


def replace_tokens(
    input_ids: torch.Tensor, mask: torch.Tensor, special_ids: Sequence[int], share: float, seed: int
) -> torch.Tensor:
    """Return the token ids with some of them replaced.

    The draws are made on the CPU, so the same seed and batch give the same ids whatever device trains.

    Args:
        input_ids: (B, L), int64, on the CPU.
        mask: (B, L), int64.
        special_ids: ids that are never replaced and never drawn, such as [CLS] and [SEP].
        share: the fraction of tokens that are replaced in a chosen row, 0..1.
        seed: determines the rows, the tokens and their replacements.

    Returns:
        (B, L), int64.
    """
    real = mask.bool() & ~torch.isin(input_ids, torch.tensor(list(special_ids)))
    pool = input_ids[real]
    if not len(pool):
        return input_ids
    generator = torch.Generator().manual_seed(seed)
    others = pool[torch.randint(len(pool), input_ids.shape, generator=generator)]
    rows = torch.rand(len(input_ids), 1, generator=generator) < ROWS
    chosen = real & rows & (torch.rand(input_ids.shape, generator=generator) < share)
    return torch.where(chosen, others, input_ids)
