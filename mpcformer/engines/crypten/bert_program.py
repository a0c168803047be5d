"""BERT as a program: its parameters are the model owner's, its words the data owner's, who alone learns the outcome.

It is the longest example of a program. The engine `crypten` runs it, with parameters that are shared once a session,
and so does `mpcformer run`, if a file says `bert = bert_program(...)` (`mpcformer.programs.bert`).
"""

from typing import Any

import torch

from mpcformer.engines.base import BatchShape
from mpcformer.engines.crypten import ops as ops
from mpcformer.engines.crypten.bert import CrypTenBert
from mpcformer.engines.crypten.compat import crypten, current
from mpcformer.engines.crypten.constants import NewtonScales
from mpcformer.engines.crypten.parameters import parameter_shapes
from mpcformer.engines.crypten.program import Input, Program, in_group
from mpcformer.engines.stopwatch import Stopwatch
from mpcformer.modeling.description import ModelDescription

# One row with |x y - 1| > 0.18 trips the check; the rounding of a million good rows together does not.
RESIDUAL_LIMIT = 2.0**-10
PARAMETERS, WORDS, OUTCOME = "parameters", "words", "outcome"


def parameter_inputs(config: ModelDescription) -> dict[str, Input]:
    """Return what the model owner puts in: see `parameter_values`."""
    return in_group(PARAMETERS, {name: Input("model", shape) for name, shape in parameter_shapes(config).items()})


def word_inputs(config: ModelDescription, shape: BatchShape) -> dict[str, Input]:
    """Return what the data owner puts in: see `unit_vectors`."""
    size = shape.batch_size * shape.seq_len, config.vocab_size + config.type_vocab_size
    return {WORDS: Input("data", size, whole=True)}


def unit_vectors(config: ModelDescription, ids: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
    """Return the unit vectors of word and token type side by side, (B L, V + T), of token ids (B, L)."""
    rows = ids.reshape(-1, 1)
    kinds = torch.zeros_like(rows) if types is None else types.reshape(-1, 1)
    vectors = torch.zeros(rows.size(0), config.vocab_size + config.type_vocab_size, dtype=torch.int64)
    vectors.scatter_(1, rows, 1)
    return vectors.scatter_(1, kinds + config.vocab_size, 1)


def declare(
    config: ModelDescription,
    constants: NewtonScales,
    mask: torch.Tensor,
    asked: torch.Tensor,
    *,
    watch: Stopwatch | None = None,
    agreed: dict[str, str] | None = None,
) -> Program:
    """Return the program of a batch of B sentences, padded to L positions.

    Its result `outcome` has a row for each sentence: the logits, and 1 if an activation left its calibrated range, else
    0. Then the logits are 0, and so is the whole row of a sentence that only fills the batch.

    Args:
        config: architecture and forms.
        constants: public scales and Newton plans.
        mask: public int64 (B, L), 1 at real tokens.
        asked: public bool (B,), which sentences are asked about.
        watch: what measures the seconds of the pass.
        agreed: see `Program`.
    """

    def bert(parameters: dict[str, Any], words: Any) -> dict[str, Any]:
        channel, device = current().channel, words.share.device
        assert channel is not None
        weights = {name: tensor._tensor for name, tensor in parameters.items()}
        real, wanted = mask.to(device), asked.to(device).long()
        network = CrypTenBert(weights, config, constants, watch or Stopwatch(channel.counters))
        logits, residual = network.forward(words._tensor, real)
        # Both sides: what diverged has wrapped around the ring, and is as likely negative as positive.
        sides = ops.wrap(torch.stack([-residual.share, residual.share]))
        outside = ops.less_than_zero(ops.add_public(sides, RESIDUAL_LIMIT)).sum(0)  # (B,)
        # Neither owner learns the bit of a row that only fills the batch.
        outside = outside * wanted
        # The logits are multiplied by the bit on shares: the model owner never learns it.
        told = ops.only_first(wanted) - outside
        numbers = ops.select(told[:, None], ops.wrap(logits.share.flatten(1))).share
        outcome = torch.cat([numbers, ops.of_bits(outside[:, None]).share], dim=1)
        if logits.share.dim() == 3:
            # Nothing of padding is told.
            tokens = real.repeat_interleave(logits.share.size(2), dim=1)
            outcome = outcome * torch.cat([tokens, torch.ones_like(tokens[:, :1])], dim=1)
        return {OUTCOME: crypten.mpc.MPCTensor.from_shares(outcome)}

    inputs = parameter_inputs(config) | word_inputs(config, BatchShape(*mask.shape))
    return Program(bert, inputs, {OUTCOME: "data"}, agreed=agreed or {})
