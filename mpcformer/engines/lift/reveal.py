"""The end of a private batch: the data owner alone learns the logits, and which sentences left their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mpcformer.correlations import Request
from mpcformer.correlations.linear import TAGS
from mpcformer.engines.base import Outcome
from mpcformer.engines.lift.scales.head import HeadScales
from mpcformer.engines.lift.weights import OwnedWeights
from mpcformer.errors import ProtocolError
from mpcformer.protocols import linear, sealed, zero_test
from mpcformer.protocols.party import DATA_OWNER, HalfShape, Party, split
from mpcformer.ring.filed import Masked
from mpcformer.ring.random import Stream, fresh_key


@dataclass(frozen=True, repr=False)
class Classifier:
    """The last linear map.

    Args:
        head: the public numbers of the head.
        shape: (H, C) of the weight.
        mask: public int64 (B, L), 1 at real tokens of the last layer.
        owned, masked: the weights at the model owner, the masked weights at the data owner.
        tag_keys: at the model owner, the keys (H,) of the tags of what the map takes.
    """

    head: HeadScales
    shape: tuple[int, ...]
    mask: torch.Tensor
    owned: OwnedWeights | None
    masked: Mapping[str, Masked] | None
    tag_keys: torch.Tensor | None = None

    def request(self, n_rows: int, is_tagged: bool) -> Request:
        """Return the request for the map of so many rows, with a product of their masks and the keys of tags."""
        shapes, names = {"classifier": self.shape, TAGS: (self.shape[0], 1)}, ["classifier", TAGS][: 1 + is_tagged]
        return linear.request(names, n_rows, shapes, [self.head.bits] * len(names))

    def expected_tags(
        self, rows: torch.Tensor, masked_input: torch.Tensor, tags: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """Return what the data owner's tags (B,) are if its input is what the tables gave it, at the model owner.

        Args:
            rows, masked_input, tags, own: as `linear.expected_tag` takes them.
        """
        keys = rows if self.tag_keys is None else self.tag_keys  # planning
        return linear.expected_tag(rows, masked_input, keys, tags, own)

    def weight_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both at the model owner: the weight (H, C), and the bias (B, C), as each sentence's rows take it."""
        if self.owned is None:  # planning
            bias = self.mask.new_empty((self.mask.size(0), self.shape[1]))
            return torch.empty(self.shape, dtype=torch.int64, device="meta"), bias
        weight, bias = self.owned.weights["classifier"], self.owned.biases["classifier"]
        return weight, (bias * self.ratios()[:, None]).round().long()

    def by_row(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return values (B, ...) of the sentences as values of their rows."""
        return values.repeat_interleave(rows.size(0) // self.mask.size(0), dim=0)

    def untold(self, asked: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        """Return bool (R,), which rows nobody is told of: of sentences that are not asked about, and of padding."""
        none = torch.zeros(self.mask.size(0), dtype=torch.bool, device=self.mask.device)
        untold = self.by_row(none if asked is None else ~asked, rows)
        return untold if rows.size(0) == self.mask.size(0) else untold | (self.mask.reshape(-1) == 0)

    def logits(self, rounded: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (R, C), at the data owner.

        Args:
            rounded: what the model owner sent, (R, C).
            own: the data owner's share of the product, over the ring of the head.
        """
        word = (rounded << self.head.low_bits) + own
        spare = 64 - self.head.bits
        logits = ((word << spare) >> spare).double() * 2.0**-self.head.total_scale
        return (logits / self.by_row(self.ratios(), logits)[:, None]).float()

    def ratios(self) -> torch.Tensor:
        """Return float64 (B,), by how much each sentence's logits come out too large."""
        if self.mask.device.type == "meta":
            return self.mask.new_empty(self.mask.size(0), dtype=torch.float64)
        return torch.tensor([self.head.row_ratio(n) for n in self.mask.sum(1).tolist()], dtype=torch.float64)


def zero_test_half(n_batch: int) -> HalfShape:
    """Return the shape of a half of the zero test, which has one number for each sentence."""
    return (n_batch,), zero_test.WORD


def reveal(
    party: Party,
    classifier: Classifier,
    rows: torch.Tensor,
    marks: torch.Tensor,
    asked: torch.Tensor | None = None,
    tags: torch.Tensor | None = None,
) -> Outcome:
    """Compute the classifier's map, and tell the data owner the logits of each sentence whose marks add up to zero.

    The model owner rounds its share of the logits to LOGIT_SCALE at random, because the digits below are equations in
    its weights. It encrypts what is left under a key that the data owner has only if the sentence's marks add up to
    zero. It receives nothing afterwards, so it cannot know whether they do.

    Where rows are tagged, what the model owner expects of the data owner's tags, minus these, is added to the marks on
    shares. An input that is not what the tables gave has marks, and no logit of it is told.

    Args:
        party: this owner.
        classifier: the map.
        rows: this owner's share of what the map takes, (B, H) or (B L, H).
        marks: this owner's shares of the sums of all marks of each sentence, (B,).
        asked: bool (B,), which sentences are asked about; None for all. Of the others neither owner learns anything:
            the sums of their marks are made zero, and zeros are sent in place of their logits.
        tags: where the head's tables tag what they give, this owner's shares of the tags, (B, H).
    """
    n_batch, bits, low_bits = marks.size(0), classifier.head.bits, classifier.head.low_bits
    sums = zero_test_half(n_batch)
    test = party.take(zero_test.request(n_batch))
    tensors = party.take(classifier.request(rows.size(0), tags is not None))
    if party.rank == DATA_OWNER:
        if tags is not None:
            marks = marks - linear.tag(tags, tensors[2])
        half = (marks if asked is None else marks * asked) + test[0]
        return _receive_logits(party, classifier, rows, half, test, tensors, asked)
    theirs, masked_input = _receive(party, sums, (tuple(rows.shape), bits))
    if tags is not None:
        marks = marks + classifier.expected_tags(rows, masked_input, tags, tensors[1])
    half = (marks if asked is None else marks * asked) + test[0]
    block = zero_test.verdict(test, theirs + half)
    weight, bias = classifier.weight_and_bias()
    share = linear.model_owner_share(rows + masked_input, [weight], tensors[:1], [bits])[0].computed()
    share = share + classifier.by_row(bias, rows)
    if share.device.type != "meta":
        share += Stream(fresh_key()).bits(share.shape, low_bits)
    share = share.masked_fill(classifier.untold(asked, rows)[:, None], 0)
    told = sealed.seal(block, (share >> low_bits).view(n_batch, -1), classifier.head.wire_bits)
    party.send([(half, zero_test.WORD), *told])
    return Outcome()


def _receive_logits(
    party: Party,
    classifier: Classifier,
    rows: torch.Tensor,
    half: torch.Tensor,
    test: list[torch.Tensor],
    tensors: list[torch.Tensor],
    asked: torch.Tensor | None,
) -> Outcome:
    if classifier.masked is None:
        raise ProtocolError("the masked weights have not arrived")
    n_batch, head = half.size(0), classifier.head
    party.send([(half, zero_test.WORD), (rows - tensors[0], head.bits)])
    own = linear.data_owner_share([classifier.masked["classifier"]], tensors[:2], [head.bits])[0].computed()
    shapes = sealed.shapes(n_batch, own.numel() // n_batch, head.wire_bits)
    theirs, seals, told = _receive(party, zero_test_half(n_batch), *shapes)
    block = zero_test.verdict(test, theirs + half)
    is_open, rounded = sealed.unseal(block, seals, told)
    refused = ~is_open
    logits = classifier.logits(rounded.view(own.shape), own)
    withheld = classifier.by_row(refused, rows) | classifier.untold(asked, rows)
    logits = logits.masked_fill(withheld[:, None], torch.nan)
    return Outcome(refused, logits if rows.size(0) == n_batch else logits.view(*classifier.mask.shape, -1))


def _receive(party: Party, *shapes: HalfShape) -> list[torch.Tensor]:
    return [x for x, _ in split(party.receive(shapes), shapes)]
