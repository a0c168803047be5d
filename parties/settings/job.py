"""The description of a job, which configurations, options, messages and reports share."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from mpcformer.engines.registry import DEFAULT_ENGINE, EMBEDDINGS, resolve
from mpcformer.errors import UserInputError
from mpcformer.tasks import EVAL
from parties.stubs import parties_pb2 as pb

ON_REFUSAL = ("skip", "stop")


def _known_engine(name: str) -> str:
    try:
        return resolve(name)
    except UserInputError as error:
        raise ValueError(f"{error.what}; {error.remedy}") from None


def _known_embeddings(name: str) -> str:
    if name not in EMBEDDINGS:
        raise ValueError(f"{name!r} is unknown; choose one of: {', '.join(EMBEDDINGS)}")
    return name


def _known_way(name: str) -> str:
    if name not in ON_REFUSAL:
        raise ValueError(f"{name!r} is unknown; choose one of: {', '.join(ON_REFUSAL)}")
    return name


# What the message `Job` can carry, in 32 bits without a sign.
MOST = (1 << 32) - 1


@dataclass(frozen=True)
class JobDescription:
    """The computation that a coordinator asks the parties for: the table `[job]` of its configuration file.

    It does not say where the models and the texts are, because each owner knows that of its own. The limits below are
    checked when a file is read; `local_run.check` checks values from the command line and names the option.

    Args:
        task: the name of the task, see `get_task`; `own-data` stands for a file that only the data owner knows.
        split: the split to read, or `eval` for those that are reported, see `load_examples`.
        limit: the number of examples; None reads all.
        batch_size: the number of sentences that share every round.
        max_length: the number of tokens to cut texts to; None refuses texts that exceed the model's positions.
        engine: one of `ENGINES`.
        embeddings: one of `EMBEDDINGS`.
        model: the model's name at the model owner; empty where the data owner may ask a single one.
        on_refusal: whether sentences that left their ranges are skipped, or end the run with an error once all of it is
            computed (stop); until then nobody but the data owner can tell that there was one.
        overlap: whether a batch is dealt while it and the one before it are computed. That is faster, but what single
            batches took is then not what they would take alone.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    task: str
    split: str = EVAL
    limit: Annotated[int | None, Field(ge=1, le=MOST, strict=True)] = None
    batch_size: Annotated[int, Field(ge=1, le=MOST, strict=True)] = 16
    max_length: Annotated[int | None, Field(ge=8, le=MOST, strict=True)] = None
    engine: Annotated[str, AfterValidator(_known_engine)] = DEFAULT_ENGINE
    embeddings: Annotated[str, AfterValidator(_known_embeddings)] = "private_table"
    overlap: Annotated[bool, Field(strict=True)] = True
    on_refusal: Annotated[str, AfterValidator(_known_way)] = "skip"
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,100}$")] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values, for journals and manifests."""
        return asdict(self)

    def message_fields(self) -> dict[str, Any]:
        """Return the description as fields of the message `Job`, where 0 stands for None."""
        return {name: 0 if value is None else value for name, value in asdict(self).items()}

    @classmethod
    def from_message(cls, message: pb.Job) -> "JobDescription":
        """Return the description that a message `Job` contains."""
        values = {each.name: getattr(message, each.name) for each in fields(cls)}
        return cls(**values | {"limit": message.limit or None, "max_length": message.max_length or None})


@dataclass(frozen=True)
class ProgramJob:
    """What a data owner asks for that runs a program: its name, which both owners' files have."""

    program: str

    def message_fields(self) -> dict[str, Any]:
        """Return the description as fields of the message `Job`."""
        return asdict(self)
