"""The interface of an engine, which runs a private BERT between two owners; `registry.create_engine` makes one.

Rank 0 is the model owner, who has the weights; rank 1 is the data owner, who has the text. Both call the same methods
in the same order: `setup` once a session; then for each shape of a batch `plan`, which is public and local and returns
segments, and `batch`, which begins one. A batch runs `offline` (what does not depend on the input) and, when its text
is there, `start` and `online`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mpcformer.channel import Channel
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.engines.cost import Cost
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.modeling import Ranges, load_ranges
from mpcformer.modeling.description import ModelDescription, described
from mpcformer.modeling.folder import require_student
from mpcformer.modeling.limits import read_object
from mpcformer.modeling.shapes import check_ranges
from mpcformer.protocols.party import DATA_OWNER, MODEL_OWNER

__all__ = [
    "DATA_OWNER",
    "MODEL_OWNER",
    "Batch",
    "BatchInputs",
    "BatchShape",
    "Engine",
    "Outcome",
    "PublicModel",
    "load_public_model",
]


@dataclass(frozen=True)
class PublicModel:
    """What both owners know of the model: its architecture and forms, and its calibrated ranges.

    Args:
        config: architecture and forms.
        ranges: calibrated on the training data.
        embeddings: private_table, or public_table: then the model owner sends its embedding tables to the data owner.
    """

    config: ModelDescription
    ranges: Ranges
    embeddings: str = "private_table"

    def facts(self) -> dict[str, str]:
        """Return by name everything that the private computation takes from this object."""
        keys = (
            "vocab_size type_vocab_size hidden_size num_hidden_layers num_attention_heads head_size intermediate_size"
            " max_position_embeddings num_labels layer_norm_eps gelu softmax constant_norms task embedding_size"
            " projection score_buckets pooling head_activation output strides"
        )
        named = {key: str(getattr(self.config, key)) for key in keys.split()}
        return named | {"ranges": json.dumps(self.ranges.to_json(), sort_keys=True), "embeddings": self.embeddings}


def load_public_model(folder: Path, embeddings: str = "private_table") -> PublicModel:
    """Read config.json and ranges.json of a student's folder; no weight is needed.

    Raises:
        UserInputError: a file is missing or damaged, or the folder holds a plain BERT.
    """
    if not (folder / "config.json").is_file():
        raise UserInputError(f"{folder} has no config.json", "give the folder of a distilled student")
    config = read_object(folder / "config.json")
    require_student(folder, config)
    public = PublicModel(described(config), load_ranges(folder), embeddings)
    check_ranges(folder, public.ranges.bounds, public.config)
    return public


@dataclass(frozen=True)
class BatchShape:
    """The shape of a batch: B sentences, padded to L positions."""

    batch_size: int
    seq_len: int


@dataclass(frozen=True)
class BatchInputs:
    """One batch.

    Args:
        attention_mask: int64 (B, L), known to both owners.
        input_ids, token_type_ids: int64 (B, L), at the data owner alone.
        n_told: how many of the first sentences are asked about; None for all. The others only fill the batch, and
            nobody is told anything of them: no logits, and not whether they left their ranges.
    """

    attention_mask: torch.Tensor
    input_ids: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    n_told: int | None = None

    @property
    def shape(self) -> BatchShape:
        """The batch size and the padded length."""
        return BatchShape(*self.attention_mask.shape)

    @property
    def asked(self) -> torch.Tensor:
        """Bool (B,), which sentences are asked about."""
        n_batch = self.attention_mask.size(0)
        return torch.arange(n_batch, device=self.attention_mask.device) < (
            n_batch if self.n_told is None else self.n_told
        )

    def __repr__(self) -> str:
        return f"BatchInputs({self.shape})"


@dataclass(frozen=True)
class Outcome:
    """What an owner learns of one batch of B sentences with C outputs each.

    The model owner learns nothing, so both are None there.

    Args:
        refused: bool (B,), True for each sentence that was asked about and whose activations left their calibrated
            ranges.
        logits: float32 (B, C), NaN in the rows of sentences that were refused or not asked about.
    """

    refused: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def known(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `refused` and `logits` at the data owner.

        Raises:
            ProtocolError: this is the outcome of the model owner, who knows neither.
        """
        if self.refused is None or self.logits is None:
            raise ProtocolError("the outcome of a batch is the data owner's alone")
        return self.refused, self.logits

    def __repr__(self) -> str:
        return "Outcome()" if self.refused is None else f"Outcome({self.refused.numel()} sentences)"


class Engine(Protocol):
    """One owner's side of the private computation.

    Args:
        rank, public, channel, session_id: as `registry.create_engine` takes them. The constructor refuses what this
            engine cannot compute, before any work starts.
        weights: at the model owner, what `encode` has returned; None at the data owner.
    """

    name: str

    def __init__(
        self, *, rank: int, public: PublicModel, channel: Channel | None, weights: Any, session_id: bytes = b""
    ) -> None: ...

    @staticmethod
    def encode(public: PublicModel, weights: Mapping[str, torch.Tensor], *, frees: bool = False) -> Any:
        """Return a state dict as the engine computes with it; all sessions of a service share it, and change nothing.

        Args:
            public: what is public of the model.
            weights: the state dict.
            frees: whether a dictionary may be emptied, so that the memory of each weight is free when it is encoded.

        Raises:
            RangeError: ranges or weights that fixed point cannot carry.
        """

    def fingerprint(self) -> str:
        """Return a hex digest of every public constant; the owners must agree on it before they start."""

    def cost(self, shape: BatchShape) -> Cost:
        """Count the rounds and bytes of one batch of this shape without running it."""

    def setup(self, store: CorrelationStore) -> None:
        """Agree on keys and share the weights; both owners do this once a session, at the same time."""

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """Return the correlations of one batch by segment, in the order of use; they are the same at both owners."""

    def batch(self, shape: BatchShape, store: CorrelationStore, channel: Channel) -> "Batch":
        """Begin a batch of this shape, after `setup`; several batches may have begun at the same time.

        Args:
            shape: the batch.
            store: the batch's own correlations, see `CorrelationStore.reserve`.
            channel: the channel for the offline part.
        """


class Batch(Protocol):
    """One owner's side of one batch: of each segment first what does not depend on the text, then the computation.

    A segment's `offline` and `online` run when its correlations are in the store. While one thread runs `start` and the
    `online` of segments, another one may run the `offline` of later segments, on another channel and the same store.
    """

    def offline(self, segment: int) -> None:
        """Exchange what the owners of a segment can tell each other before the input is used."""

    def start(self, inputs: BatchInputs, channel: Channel) -> None:
        """Take the inputs, and the channel for the online part."""

    def online(self, segment: int) -> Outcome | None:
        """Run a segment of the batch; the last one returns the outcome, all others None.

        If an activation of a sentence left its calibrated range, the data owner alone learns that one bit, and nobody
        is told the sentence's logits. The other sentences of the batch are answered.
        """

    def breakdown(self) -> dict[str, float]:
        """Return the online seconds of the batch by operation, see `stopwatch.OPERATIONS`; waiting is included."""

    def waited(self) -> dict[str, float]:
        """Return the part of `breakdown` that was waiting."""
