"""The configuration of a party, or of the coordinator: a TOML file, checked whole before anything starts."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mpcformer.errors import UserInputError

PROTOCOL_VERSION = 1
Role = Literal["dealer", "model-owner", "data-owner"]
Device = Literal["cpu", "cuda"]


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return value


Address = Annotated[str, AfterValidator(_address)]


class TlsFiles(BaseModel):
    """PEM files: the authority both sides trust, and this party's certificate and key."""

    model_config = ConfigDict(extra="forbid")
    authority: Path
    certificate: Path
    key: Path


class Peers(BaseModel):
    """Party ids: the names their certificates must bear."""

    model_config = ConfigDict(extra="forbid")
    coordinator: str
    dealer: str
    model_owner: str
    data_owner: str


class PartyConfig(BaseModel):
    """A party's own file.

    Args:
        role: what it does.
        id: its name; its certificate's too.
        coordinator: HOST:PORT.
        listen: HOST:PORT for dealer and model owner; port 0 takes a free one.
        advertise: HOST:PORT under which the others reach it, if that is not where it listens.
        join_timeout_s: how long it looks for the coordinator.
        student: model owner only, the distilled student's folder.
        public_model: data owner only, a folder with config.json, ranges.json and the tokenizer, no weights.
        public_embeddings: model owner only, may its embedding tables be told to the data owner.
        data_dir: data owner only, as in `load_examples`.
        threads: torch threads.
        device: where it multiplies matrices.
        deadline_s: how long a peer may stay silent in the middle of a computation.
    """

    model_config = ConfigDict(extra="forbid")
    role: Role
    id: str
    coordinator: Address
    listen: Address = "127.0.0.1:0"
    advertise: Address | None = None
    join_timeout_s: float = Field(default=15.0, gt=0)
    tls: TlsFiles
    peers: Peers
    student: Path | None = None
    public_model: Path | None = None
    public_embeddings: bool = False
    data_dir: Path | None = None
    threads: int = Field(default=1, ge=1)
    device: Device = "cpu"
    deadline_s: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _role_has_what_it_needs(self) -> "PartyConfig":
        if (self.role == "model-owner") != (self.student is not None):
            raise ValueError("student: exactly the model owner has one")
        if (self.role == "data-owner") != (self.public_model is not None):
            raise ValueError("public_model: exactly the data owner has one")
        if self.public_embeddings and self.role != "model-owner":
            raise ValueError("public_embeddings: only the model owner may allow it")
        if self.data_dir is not None and self.role != "data-owner":
            raise ValueError("data_dir: only the data owner may have one")
        return self


class JobConfig(BaseModel):
    """What the parties shall compute; as the options of `mpcformer infer`."""

    model_config = ConfigDict(extra="forbid")
    task: str
    split: str = "eval"
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_length: int | None = Field(default=None, ge=8)
    engine: Literal["mpcformer", "crypten"] = "mpcformer"
    embeddings: Literal["private_table", "public_table"] = "private_table"


class PartyIds(BaseModel):
    """Who is expected: the names of their certificates."""

    model_config = ConfigDict(extra="forbid")
    dealer: str
    model_owner: str
    data_owner: str


class CoordinatorConfig(BaseModel):
    """The coordinator's own file.

    Args:
        listen: HOST:PORT that the parties reach.
        tls: its certificate.
        parties: their ids.
        job: what to compute.
        join_timeout_s: how long it waits for all to join.
    """

    model_config = ConfigDict(extra="forbid")
    listen: Address
    tls: TlsFiles
    parties: PartyIds
    job: JobConfig
    join_timeout_s: float = Field(default=600.0, gt=0)


Config = TypeVar("Config", PartyConfig, CoordinatorConfig)


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read a file; its relative paths are relative to the file's folder.

    Raises:
        UserInputError: unreadable, not TOML, or any wrong key; all errors at once.
    """
    try:
        config = kind.model_validate(tomllib.loads(path.read_text()))
        _anchor(config, path.resolve().parent)
        return config
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserInputError(f"--config: {path}: {error}", "check the path and the syntax") from None
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UserInputError(f"--config: {path}: {lines}", "correct these keys") from None


def _anchor(config: BaseModel, folder: Path) -> None:
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            _anchor(value, folder)
        elif isinstance(value, Path):
            setattr(config, name, folder / value)


def to_toml(config: PartyConfig) -> str:
    """The configuration as TOML (strings, numbers and two flat tables)."""
    fields = config.model_dump(mode="json", exclude_none=True)
    tables = {key: fields.pop(key) for key in ("tls", "peers")}
    lines = [_line(key, value) for key, value in fields.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return f"{key} = {str(value).lower()}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'{key} = "{escaped}"'
    return f"{key} = {value}"
