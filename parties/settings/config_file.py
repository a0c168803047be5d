"""Configurations as TOML files: read whole, every wrong key said at once; and written."""

import tomllib
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, TypeAdapter, ValidationError

from mpcformer.errors import UserInputError
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PartyConfig,
    Role,
)


def load_party(path: Path) -> DealerConfig | ModelOwnerConfig | DataOwnerConfig:
    """A party's file; see `_load`."""
    if "role" not in _read(path):
        raise UserInputError(
            f"--config: {path}: role is missing, so this is no party's file",
            f"give role, one of: {', '.join(get_args(Role))}; a coordinator's file is for: mpcformer coordinate",
        )
    config: DealerConfig | ModelOwnerConfig | DataOwnerConfig = _load(path, PartyConfig)
    return config


def load_coordinator(path: Path) -> CoordinatorConfig:
    """The coordinator's file; see `_load`."""
    if "role" in (values := _read(path)):
        raise UserInputError(
            f"--config: {path}: role is {values['role']!r}, so this is a party's file, not the coordinator's",
            "give the coordinator's; a party's is for: mpcformer party",
        )
    config: CoordinatorConfig = _load(path, CoordinatorConfig)
    return config


def load_any(path: Path) -> AnyConfig:
    """Either: a file with a `role` is a party's."""
    return load_party(path) if "role" in _read(path) else load_coordinator(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserInputError(f"--config: {path}: {error}", "check the path and the syntax") from None


def _load(path: Path, kind: Any) -> Any:
    """Read a file; its relative paths are relative to the file's folder.

    Raises:
        UserInputError: unreadable, not TOML, or any wrong key; all errors at once.
    """
    values = _read(path)
    try:
        config = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = "; ".join(f"{_place(e['loc'], kind is PartyConfig)}: {_reason(e)}" for e in error.errors())
        raise UserInputError(f"--config: {path}: {lines}", "correct these keys") from None
    _anchor(config, path.resolve().parent)
    return config


def _place(loc: tuple[int | str, ...], several_roles: bool) -> str:
    # Where several roles are possible pydantic puts the one that is meant first.
    keys = loc[1:] if several_roles and loc and loc[0] in get_args(Role) else loc
    return ".".join(map(str, keys)) or "file"


def _reason(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _anchor(config: BaseModel, folder: Path) -> None:
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            _anchor(value, folder)
        elif isinstance(value, Path):
            setattr(config, name, folder / value)


def to_toml(config: BaseModel) -> str:
    """Return a configuration as TOML, without the settings that are None."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
