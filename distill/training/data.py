"""Training examples, the padded batches that are made from them, and each process's share of a batch."""

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from distill.training.processes import Processes
from mpcformer.tasks import Encoded, pad_batch


class Batch(dict[str, torch.Tensor]):
    """Padded rows with labels: a whole batch, or one process's share of it.

    The training loop multiplies the loss of a batch by `weight`; the sum over all shares is then the loss of the whole
    batch, if the loss is a mean over rows. A loss that is a mean over something else is multiplied by `tokens` or
    `pairs` as well.

    Attributes:
        weight: the fraction of the batch's rows that are in this share.
        tokens: the factor for a mean over real tokens.
        pairs: the factor for a mean over pairs of real tokens in the same row.
        whole: the indices of all examples of the batch.
        rows: the positions of this share's rows within `whole`.
        seed: the seed of everything that is drawn for the whole batch; all processes have the same.
        progress: the fraction of the stage that is done, 0..1.
    """

    whole: Sequence[int] = ()
    rows: Sequence[int] = ()
    seed = 0
    progress = 0.0
    weight = 1.0
    tokens = 1.0
    pairs = 1.0


@dataclass(frozen=True)
class Data:
    """Training examples.

    Args:
        encoded: the tokenised texts, N of them.
        labels: (N,).
        pad_id: the id of the padding token.
        batch_size: the number of rows in a batch.
    """

    encoded: list[Encoded]
    labels: torch.Tensor
    pad_id: int
    batch_size: int

    def batch(self, indices: list[int], device: torch.device) -> Batch:
        """Return one padded batch with labels, on `device`."""
        tensors = {**pad_batch([self.encoded[i] for i in indices], self.pad_id), "labels": self.labels[indices]}
        return Batch({key: value.to(device) for key, value in tensors.items()})

    def share(self, indices: list[int], processes: Processes, device: torch.device) -> Batch:
        """Return this process's part of a batch. A process without a row takes one row with weight 0."""
        own = processes.share(indices)
        batch = self.batch(own or indices[:1], device)
        batch.whole, batch.rows = indices, processes.share(range(len(indices))) or [0]
        if processes.size > 1:
            batch.weight = len(own) / len(indices)
            if own:
                batch.tokens = self._share_of(own, indices, 1) / batch.weight
                batch.pairs = self._share_of(own, indices, 2) / batch.weight
        return batch

    def _share_of(self, own: list[int], indices: list[int], power: int) -> float:
        """Return the share of `own` in the sum of lengths, raised to `power`, over the whole batch."""
        mine, whole = (sum(float(len(self.encoded[i].input_ids)) ** power for i in rows) for rows in (own, indices))
        return mine / whole

    def digest(self) -> str:
        """Return a hexadecimal SHA-256 of all examples, in order."""
        rows = hashlib.sha256(repr(self.labels.tolist()).encode())
        for row in self.encoded:
            rows.update(f"{row.input_ids}{row.token_type_ids}".encode())
        return rows.hexdigest()

    def first(self, n_tokens: int, device: torch.device) -> Iterator[Batch]:
        """Yield the first examples, until they contain `n_tokens` tokens, in batches of similar lengths, unlabelled."""
        lengths = [len(row.input_ids) for row in self.encoded]
        count = bisect.bisect_left(list(itertools.accumulate(lengths)), n_tokens) + 1
        order = sorted(range(min(count, len(lengths))), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            batch = self.batch(order[start : start + self.batch_size], device)
            del batch["labels"]
            yield batch
