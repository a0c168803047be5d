"""The private engines by name. The command line, configurations, reports and estimates all read this one list.

To add an engine, write a module with a class that implements `mpcformer.engines.base.Engine`, and add one line to
`ENGINES`. Importing this module loads neither torch nor any engine, so that a command's help stays fast.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpcformer.console import err_console
from mpcformer.errors import ProtocolError, UserInputError

if TYPE_CHECKING:
    import torch

    from mpcformer.channel import Channel
    from mpcformer.engines.base import BatchShape, Engine, PublicModel
    from mpcformer.engines.cost import Cost

DEFAULT_ENGINE = "lift"
EMBEDDINGS = ("private_table", "public_table")


@dataclass(frozen=True)
class EngineEntry:
    """An engine that can be chosen.

    Args:
        module, class_name: where the engine's class is; it is imported when the engine is first used.
        about: what the engine is, in a few words for a help text.
    """

    module: str
    class_name: str
    about: str

    def load(self) -> type["Engine"]:
        """Import the engine's module and return its class."""
        engine: type[Engine] = getattr(importlib.import_module(self.module), self.class_name)
        return engine


ENGINES: dict[str, EngineEntry] = {
    "lift": EngineEntry("mpcformer.engines.lift.engine", "LiftEngine", "protocols made for this model, the default"),
    "crypten": EngineEntry("mpcformer.engines.crypten.engine", "CrypTenEngine", "generic protocols, the reference"),
}
# The default engine had the project's own name until release 0.1.
ALIASES = {"mpcformer": "lift"}


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines, the default first."""
    return tuple(ENGINES)


def canonical_name(name: str) -> str:
    """Return an engine's present name for a present or a former one.

    Raises:
        UserInputError: the name is unknown.
    """
    name = ALIASES.get(name, name)
    if name not in ENGINES:
        raise UserInputError(f"engine {name!r} is unknown", f"choose one of: {', '.join(ENGINES)}")
    return name


def recorded_name(name: str) -> str:
    """Return the name under which hashes of recorded results know an engine: the first one that it had."""
    first = {now: former for former, now in ALIASES.items()}
    return first.get(name, name)


def resolve(name: str) -> str:
    """Return the present name of an engine that a user named, and say so on the terminal if the name is a former one.

    Raises:
        UserInputError: the name is unknown.
    """
    if name in ALIASES:
        err_console.print(f"note: the engine {name} is now called {ALIASES[name]}; the old name still works")
    return canonical_name(name)


def create_engine(
    name: str,
    *,
    rank: int,
    public: "PublicModel",
    channel: "Channel | None",
    weights: "Mapping[str, torch.Tensor] | None" = None,
    encoded: Any = None,
    session_id: bytes = b"",
) -> "Engine":
    """Create one owner's side of an engine, for one session.

    Args:
        name: one of `ENGINES`, or a former name.
        rank: 0 for the model owner, 1 for the data owner.
        public: what both owners know of the model.
        channel: the channel to the other owner; None for an engine that only plans.
        weights: a BERT state dict at the model owner, None at the data owner.
        encoded: at a model owner that gives no weights, what `encode_weights` has returned for this engine.
        session_id: public, and unknown to whoever writes the texts, see `row_lookup.salt_of`; it may be empty if there
            is no channel.

    Raises:
        UserInputError: the engine or the kind of embeddings is unknown, or this engine does not support it.
        ProtocolError: there is a channel but no session_id, or the model owner gives no weights.
        RangeError: ranges or weights that fixed point cannot carry.
    """
    entry = ENGINES[canonical_name(name)]
    if public.embeddings not in EMBEDDINGS:
        raise UserInputError(f"embeddings {public.embeddings!r} are unknown", f"choose one of: {', '.join(EMBEDDINGS)}")
    if channel is not None and not session_id:
        raise ProtocolError("session_id is empty: rows would be looked up in the same places in every session")
    engine = entry.load()
    owned = encoded if weights is None else engine.encode(public, weights)
    return engine(rank=rank, public=public, channel=channel, weights=owned, session_id=session_id)


def encode_weights(name: str, public: "PublicModel", weights: "Mapping[str, torch.Tensor]") -> Any:
    """Return a BERT state dict as an engine computes with it, for several calls of `create_engine`.

    A dictionary may be empty afterwards, because the memory of each weight is freed when it is encoded.

    Raises:
        UserInputError: the engine is unknown.
        RangeError: ranges or weights that fixed point cannot carry.
    """
    return ENGINES[canonical_name(name)].load().encode(public, weights, frees=True)


def estimate_batch(name: str, public: "PublicModel", shape: "BatchShape") -> "Cost":
    """Count the rounds and bytes of one batch without running it.

    Raises:
        UserInputError: the engine is unknown, or it cannot run the model's forms.
        RangeError: ranges that the engine cannot carry.
    """
    return create_engine(name, rank=1, public=public, channel=None, weights=None).cost(shape)
