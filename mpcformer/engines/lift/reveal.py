"""The end of a private batch: the data owner alone learns the logits of each sentence that stayed in range."""

from collections.abc import Mapping

import torch

from mpcformer.engines.base import Outcome
from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.errors import ProtocolError
from mpcformer.protocols import linear, zero_test
from mpcformer.protocols.party import DATA_OWNER, HalfShape, Party, split
from mpcformer.ring.random import Stream, fresh_key

# Logits are told to 2^-10: finer digits would tell how shares were rounded, and with it something of the weights.
LOGIT_SCALE, LOGIT_WIRE_BITS = 10, 24
LOW_BITS = fp.LOGIT_TOTAL_SCALE - LOGIT_SCALE


def zero_test_half(n_batch: int) -> HalfShape:
    """Return the shape of a half of the zero test, which has one number for each sentence."""
    return (n_batch,), zero_test.WORD


def reveal(
    party: Party,
    pooled: torch.Tensor,
    marks: torch.Tensor,
    weight_shape: tuple[int, ...],
    owned: OwnedWeights | None,
    masked: Mapping[str, torch.Tensor] | None,
    asked: torch.Tensor | None = None,
) -> Outcome:
    """Compute the classifier's map, between the two rounds that tell whose marks add up to zero.

    The model owner rounds its share of the logits to LOGIT_SCALE at random and sends what is left, because the digits
    below are equations in its weights. Instead of its share of a refused sentence's logits it sends zeros.

    Args:
        party: this owner.
        pooled: this owner's share of the pooled row, (B, H) at POOLED_SCALE + FACTOR_EXTRA_BITS.
        marks: this owner's shares of the sums of all marks of each sentence, (B,).
        weight_shape: (H, C) of the classifier.
        owned, masked: the weights at the model owner, the masked weights at the data owner.
        asked: bool (B,), which sentences are asked about; None for all. Of the others neither owner learns anything:
            the sums of their marks are made zero, and their logits are withheld like those of refused ones.
    """
    sums = zero_test_half(pooled.size(0))
    request = linear.request(["classifier"], pooled.size(0), {"classifier": weight_shape}, [fp.LOGIT_BITS])
    test, tensors = party.take(zero_test.request(pooled.size(0))), party.take(request)
    half = (marks if asked is None else marks * asked) + test[0]
    if party.rank == DATA_OWNER:
        if masked is None:
            raise ProtocolError("the masked weights have not arrived")
        return _receive_logits(party, pooled, half, test, tensors, masked["classifier"], asked)
    party.send([(half, zero_test.WORD)])
    theirs, masked_input = _receive(party, sums, (tuple(pooled.shape), fp.LOGIT_BITS))
    verdict = zero_test.verdict(test, theirs + half)
    if owned is None:  # planning
        weight, bias = (torch.empty(s, dtype=torch.int64, device="meta") for s in (weight_shape, weight_shape[1:]))
    else:
        weight, bias = owned.weights["classifier"], owned.biases["classifier"]
    share = linear.model_owner_share(pooled, masked_input, [weight], tensors, [fp.LOGIT_BITS])[0] + bias
    refused = (_receive(party, sums)[0] + verdict) != 0
    if share.device.type != "meta":
        share += Stream(fresh_key()).bits(share.shape, LOW_BITS)
    withheld = refused if asked is None else refused | ~asked
    share = share.masked_fill(withheld[:, None], 0)
    party.send([(verdict, zero_test.WORD), (share >> LOW_BITS, LOGIT_WIRE_BITS)])
    return Outcome(refused)


def _receive_logits(
    party: Party,
    pooled: torch.Tensor,
    half: torch.Tensor,
    test: list[torch.Tensor],
    tensors: list[torch.Tensor],
    masked_weight: torch.Tensor,
    asked: torch.Tensor | None,
) -> Outcome:
    sums = zero_test_half(pooled.size(0))
    party.send([(half, zero_test.WORD), (pooled - tensors[0], fp.LOGIT_BITS)])
    c = _receive(party, sums)[0] + half
    own = linear.data_owner_share([masked_weight], tensors, [fp.LOGIT_BITS])[0]
    verdict = zero_test.verdict(test, c)
    party.send([(verdict, zero_test.WORD)])
    theirs, rounded = _receive(party, sums, (tuple(own.shape), LOGIT_WIRE_BITS))
    refused = (theirs + verdict) != 0
    logits = ((rounded << LOW_BITS) + own).double().div(2.0**fp.LOGIT_TOTAL_SCALE).float()
    withheld = refused if asked is None else refused | ~asked
    return Outcome(refused, logits.masked_fill(withheld[:, None], torch.nan))


def _receive(party: Party, *shapes: HalfShape) -> list[torch.Tensor]:
    return [x for x, _ in split(party.receive(shapes), shapes)]
