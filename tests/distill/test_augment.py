"""Replaced tokens: which tokens stay, how many are replaced, and by what."""

import torch

from distill.objectives.augment import ROWS, replace_tokens

CLS, SEP, PAD = 101, 102, 0


def batch(n: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of two segments in which every token has its own id; the last two columns are padding."""
    ids = torch.arange(1000, 1000 + n * length).view(n, length)
    ids[:, 0], ids[:, length // 2], ids[:, -3], ids[:, -2:] = CLS, SEP, SEP, PAD
    return ids, (ids != PAD).long()


def test_about_the_share_goes_in_about_half_of_the_texts() -> None:
    ids, mask = batch(2000, 25)
    new = replace_tokens(ids, mask, [CLS, SEP, PAD], 0.25, seed=0)
    words = (ids >= 1000).sum(1)
    changed = (new != ids).sum(1) / words
    touched = changed > 0
    assert abs(float(touched.float().mean()) - ROWS) < 0.05
    assert abs(float(changed[touched].mean()) - 0.25) < 0.03
    special = ids < 1000
    assert torch.equal(new[special], ids[special])
    assert set(new[~special].tolist()) <= set(ids[~special].tolist()), "replacements are words of the batch"
    assert len(set(new[new != ids].tolist())) > 1000, "replacements are drawn from the whole batch"


def test_the_seed_decides_and_nothing_else() -> None:
    ids, mask = batch(32, 16)
    made = [replace_tokens(ids, mask, [CLS, SEP, PAD], 0.5, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_nothing_to_replace() -> None:
    ids, mask = batch(4, 12)
    assert torch.equal(replace_tokens(ids, mask, [CLS, SEP, PAD], 0.0, seed=0), ids)
    empty = torch.tensor([[CLS, SEP, PAD]])
    assert torch.equal(replace_tokens(empty, (empty != PAD).long(), [CLS, SEP, PAD], 1.0, seed=0), empty)
