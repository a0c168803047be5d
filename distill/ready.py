"""Which private engines carry a student, said when it is made and not when somebody first asks it something."""

from collections.abc import Mapping

import torch

from mpcformer.engines.base import MODEL_OWNER, BatchShape, PublicModel
from mpcformer.engines.registry import ENGINES, create_engine
from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling import MPCFormerConfig
from mpcformer.modeling.ranges import Ranges

RUNS = "runs"


def engines(
    config: MPCFormerConfig, ranges: Ranges, weights: Mapping[str, torch.Tensor], max_length: int
) -> dict[str, str]:
    """By engine: `RUNS`, or why it refuses a student.

    Args:
        config, ranges, weights: the student's; weights as its state dict, on the CPU.
        max_length: L of the longest texts, the least favourable case.
    """
    found = {}
    for name in ENGINES:
        try:
            public = PublicModel(config, ranges)
            engine = create_engine(name, rank=MODEL_OWNER, public=public, channel=None, weights=weights)
            engine.plan(BatchShape(1, max_length))
            found[name] = RUNS
        except (RangeError, UserInputError) as error:
            found[name] = error.what
    return found
