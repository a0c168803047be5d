"""The groups of distances between positions, for each of which an encoder may learn a bias on its scores."""

import math
from functools import lru_cache

import torch

# Distances from here on share a group.
MAX_DISTANCE = 128


@lru_cache(maxsize=64)
def distance_buckets(n_positions: int, n_buckets: int, step: int = 1) -> torch.Tensor:
    """Return the groups of the distances between positions, int64 (L, L), that lie `step` apart in the text.

    Half of the groups are for later positions. In each half, half of the groups hold one distance each, and the other
    ones grow with the logarithm of the distance, up to MAX_DISTANCE.
    Source: Raffel et al., T5, JMLR 2020, section 2.1, as in MPNet.
    """
    # What is kept may be made while somebody predicts, and used while somebody trains.
    with torch.inference_mode(False):
        position = step * torch.arange(n_positions)
        ahead = position[None, :] - position[:, None]
        half, exact = n_buckets // 2, n_buckets // 4
        distance = ahead.abs()
        # Groups are the same as in transformers only if the logarithm is taken in float32.
        growth = torch.log(distance.float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
        far = (exact + growth.clamp(min=0).long()).clamp(max=half - 1)
        return torch.where(distance < exact, distance, far) + (ahead > 0).long() * half
