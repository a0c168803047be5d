"""The end of a private batch: if all was in range, the data owner alone learns the logits."""

from collections.abc import Mapping

import torch

from mpcformer.engines.lift import fixed_point as fp
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.errors import ProtocolError, RangeError
from mpcformer.protocols import linear, zero_test
from mpcformer.protocols.party import DATA_OWNER, HalfShape, Party, split
from mpcformer.ring.random import Stream, fresh_key

# Logits are told to 2^-10: finer digits would tell how shares were rounded, and with it something of the weights.
LOGIT_SCALE, LOGIT_WIRE_BITS = 10, 24
LOW_BITS = fp.LOGIT_TOTAL_SCALE - LOGIT_SCALE
ONE_WORD: HalfShape = ((1,), zero_test.WORD)


def reveal(
    party: Party,
    pooled: torch.Tensor,
    mark: torch.Tensor,
    weight_shape: tuple[int, ...],
    owned: OwnedWeights | None,
    masked: Mapping[str, torch.Tensor] | None,
) -> torch.Tensor | None:
    """Compute the classifier's map, between the two rounds that tell whether the marks add up to zero.

    The model owner rounds its share of the logits to LOGIT_SCALE at random and sends what is left, because the digits
    below are equations in its weights.

    Args:
        party: this owner.
        pooled: this owner's share of the pooled row, (B, H) at POOLED_SCALE + FACTOR_EXTRA_BITS.
        mark: this owner's share of the sum of all marks, (1,).
        weight_shape: (H, C) of the classifier.
        owned, masked: the weights at the model owner, the masked weights at the data owner.

    Returns:
        float32 (B, C) at the data owner, else None.

    Raises:
        RangeError: the sum is not zero; no logit was told to anybody.
    """
    request = linear.request(["classifier"], pooled.size(0), {"classifier": weight_shape}, fp.LOGIT_BITS)
    test, tensors = party.take(zero_test.request()), party.take(request)
    half = mark + test[0]
    if party.rank == DATA_OWNER:
        if masked is None:
            raise ProtocolError("the masked weights have not arrived")
        return _receive_logits(party, pooled, half, test, tensors, masked["classifier"])
    party.send([(half, zero_test.WORD)])
    theirs, masked_input = _receive(party, ONE_WORD, (tuple(pooled.shape), fp.LOGIT_BITS))
    verdict = zero_test.verdict(test, theirs + half)
    if owned is None:  # planning
        weight, bias = (torch.empty(s, dtype=torch.int64, device="meta") for s in (weight_shape, weight_shape[1:]))
    else:
        weight, bias = owned.weights["classifier"], owned.biases["classifier"]
    share = linear.model_owner_share(pooled, masked_input, [weight], tensors)[0] + bias
    total = _receive(party, ONE_WORD)[0] + verdict
    if total.device.type != "meta":
        share += Stream(fresh_key()).bits(share.shape, LOW_BITS)
        if int(total):
            share = torch.zeros_like(share)
    party.send([(verdict, zero_test.WORD), (share >> LOW_BITS, LOGIT_WIRE_BITS)])
    _verify(total)
    return None


def _receive_logits(
    party: Party,
    pooled: torch.Tensor,
    half: torch.Tensor,
    test: list[torch.Tensor],
    tensors: list[torch.Tensor],
    masked_weight: torch.Tensor,
) -> torch.Tensor:
    party.send([(half, zero_test.WORD), (pooled - tensors[0], fp.LOGIT_BITS)])
    c = _receive(party, ONE_WORD)[0] + half
    own = linear.data_owner_share([masked_weight], tensors)[0]
    verdict = zero_test.verdict(test, c)
    party.send([(verdict, zero_test.WORD)])
    theirs, rounded = _receive(party, ONE_WORD, (tuple(own.shape), LOGIT_WIRE_BITS))
    _verify(theirs + verdict)
    return ((rounded << LOW_BITS) + own).double().div(2.0**fp.LOGIT_TOTAL_SCALE).float()


def _receive(party: Party, *shapes: HalfShape) -> list[torch.Tensor]:
    return [x for x, _ in split(party.receive(shapes), shapes)]


def _verify(total: torch.Tensor) -> None:
    if total.device.type != "meta" and int(total):
        raise RangeError(
            "an activation of this batch left the range calibrated on the training data",
            "leave out texts unlike the training data, or distil with more of it: the ranges come from there",
        )
