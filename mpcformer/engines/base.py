"""An engine runs a private BERT between two owners. `create_engine` is the one way to get one.

Party 0 is the model owner (weights), party 1 the data owner (text). Both call the same methods in the same order:
`setup` once; then per batch `plan` (public, local), which gives segments; and for each segment in order, with its
correlations in the store, `offline` (what does not depend on the input) and `online`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mpcformer.channel import Channel
from mpcformer.correlations import CorrelationStore, Request
from mpcformer.errors import ProtocolError, UserInputError
from mpcformer.files import read_json
from mpcformer.modeling import MPCFormerConfig, Ranges, load_ranges
from mpcformer.modeling.load import require_student

ENGINES = ("mpcformer", "crypten")
DEFAULT_ENGINE = "mpcformer"
EMBEDDINGS = ("private_table", "public_table")
MODEL_OWNER, DATA_OWNER = 0, 1


@dataclass(frozen=True)
class PublicModel:
    """What both owners know of the model: its architecture and forms, and its calibrated ranges.

    embeddings: of EMBEDDINGS; with public_table the model owner tells its embedding tables to the data owner.
    """

    config: MPCFormerConfig
    ranges: Ranges
    embeddings: str = "private_table"

    def facts(self) -> dict[str, str]:
        """Everything that the private computation takes from here, by name."""
        keys = (
            "vocab_size type_vocab_size hidden_size num_hidden_layers num_attention_heads head_size intermediate_size"
            " max_position_embeddings num_labels layer_norm_eps gelu softmax constant_norms task"
        )
        named = {key: str(getattr(self.config, key)) for key in keys.split()}
        return named | {"ranges": json.dumps(self.ranges.to_json(), sort_keys=True), "embeddings": self.embeddings}


def load_public_model(folder: Path, embeddings: str = "private_table") -> PublicModel:
    """Read config.json and ranges.json; no weight is needed.

    Raises:
        UserInputError: a file is missing or damaged, or the folder holds a plain BERT.
    """
    if not (folder / "config.json").is_file():
        raise UserInputError(f"{folder} has no config.json", "give the folder of a distilled student")
    require_student(folder, read_json(folder / "config.json"))
    return PublicModel(MPCFormerConfig.from_pretrained(folder), load_ranges(folder), embeddings)


@dataclass(frozen=True)
class BatchShape:
    """B sentences padded to L positions."""

    batch_size: int
    seq_len: int


@dataclass(frozen=True)
class BatchInputs:
    """One batch: the public mask for both owners, token ids for the data owner alone. All int64 (B, L)."""

    attention_mask: torch.Tensor
    input_ids: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None

    @property
    def shape(self) -> BatchShape:
        """The padded shape."""
        return BatchShape(*self.attention_mask.shape)

    def __repr__(self) -> str:
        return f"BatchInputs({self.shape})"


class Engine(Protocol):
    """One owner's side of the private computation."""

    name: str

    def fingerprint(self) -> str:
        """Hex digest of every public constant; owners must agree on it before they start."""

    def setup(self, store: CorrelationStore) -> None:
        """Agree on keys and share the weights; once a session, both owners at the same time."""

    def plan(self, shape: BatchShape) -> list[list[Request]]:
        """The correlations of one batch, by segment, in order of use; the same at both owners."""

    def start(self, inputs: BatchInputs, store: CorrelationStore) -> None:
        """Begin a batch: its plan's correlations will come from `store`."""

    def offline(self, segment: int) -> None:
        """What the owners tell each other before the input is used."""

    def online(self, segment: int) -> torch.Tensor | None:
        """A segment of the batch; the last one gives float32 (B, C) logits at the data owner, else None.

        Raises:
            RangeError: an activation left its calibrated range; both owners learn that one bit, and no logit is opened.
        """

    def breakdown(self) -> dict[str, float]:
        """Online seconds of the batch by operation, see `stopwatch.OPERATIONS`, waiting included."""

    def waited(self) -> dict[str, float]:
        """The part of `breakdown` that was waiting."""


def create_engine(
    name: str,
    *,
    party: int,
    public: PublicModel,
    channel: Channel | None,
    weights: Mapping[str, torch.Tensor] | None,
    session_id: bytes = b"",
) -> Engine:
    """An engine by name, for one session.

    Args:
        name: of ENGINES.
        party: 0 model owner, 1 data owner.
        public: what both know of the model.
        channel: to the other owner; none: for planning only.
        weights: a BERT state dict at the model owner, None at the data owner.
        session_id: public, and unknown to whoever writes the texts, see `row_lookup.salt_of`; without a channel it
            may be empty.

    Raises:
        UserInputError: unknown name.
        ProtocolError: no session_id to compute with.
        RangeError: ranges or weights that fixed point cannot carry.
    """
    if name not in ENGINES:
        raise UserInputError(f"engine {name!r} is unknown", f"choose one of: {', '.join(ENGINES)}")
    if public.embeddings not in EMBEDDINGS:
        raise UserInputError(f"embeddings {public.embeddings!r} are unknown", f"choose one of: {', '.join(EMBEDDINGS)}")
    if name == "crypten" and public.embeddings != "private_table":
        raise UserInputError("engine crypten has private tables only", "leave --embeddings out, or use mpcformer")
    if channel is not None and not session_id:
        raise ProtocolError("session_id is empty: rows would be looked up in the same places in every session")
    if name == "crypten":
        from mpcformer.engines.crypten.engine import CrypTenEngine

        return CrypTenEngine(party=party, public=public, channel=channel, weights=weights)
    from mpcformer.engines.lift.engine import MPCFormerEngine

    return MPCFormerEngine(party=party, public=public, channel=channel, weights=weights, session_id=session_id)
