"""Check which private engines can run a student when it is saved, rather than when somebody first uses it."""

from collections.abc import Mapping

import torch

from mpcformer.engines.base import MODEL_OWNER, BatchShape, PublicModel
from mpcformer.engines.registry import ENGINES, create_engine
from mpcformer.errors import RangeError, UserInputError
from mpcformer.modeling import MPCFormerConfig
from mpcformer.modeling.ranges import Ranges

# The verdict on a student that an engine can run.
RUNS = "runs"


def engines(
    config: MPCFormerConfig, ranges: Ranges, weights: Mapping[str, torch.Tensor], max_length: int
) -> dict[str, str]:
    """Return for each engine `RUNS`, or the reason why it refuses the student.

    Args:
        config: the student's configuration.
        ranges: the student's calibrated ranges.
        weights: the student's state dict, on the CPU.
        max_length: L, the number of tokens of the longest texts, which are the hardest case.
    """
    verdicts = {}
    for name in ENGINES:
        try:
            public = PublicModel(config, ranges)
            engine = create_engine(name, rank=MODEL_OWNER, public=public, channel=None, weights=weights)
            engine.plan(BatchShape(1, max_length))
            verdicts[name] = RUNS
        except (RangeError, UserInputError) as error:
            verdicts[name] = error.what
    return verdicts
