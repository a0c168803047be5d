"""Read configurations from TOML files, with all wrong keys in one error, and write them."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, TypeAdapter, ValidationError

from mpcformer.errors import MPCFormerError, UserInputError
from mpcformer.tasks import OwnData
from parties.settings.config import (
    AnyConfig,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PartyConfig,
    Role,
)

MAX_BYTES = 1 << 20
# Options of `infer` that files have as keys; a remedy must not name an option that the command has not.
OPTIONS = re.compile(
    r"--(task|split|limit|batch-size|max-length|engine|embeddings|data-dir|device|threads|deadline-s|on-refusal)\b"
)


def load_party(path: Path) -> DealerConfig | ModelOwnerConfig | DataOwnerConfig:
    """Read the file of a party; see `_load` for the errors."""
    if "role" not in _read(path):
        raise UserInputError(
            f"--config: {path}: role is missing, so this is not a party's file",
            f"give role, one of: {', '.join(get_args(Role))}; a coordinator's file is for: mpcformer coordinate",
        )
    config: DealerConfig | ModelOwnerConfig | DataOwnerConfig = _load(path, PartyConfig)
    return config


def load_coordinator(path: Path) -> CoordinatorConfig:
    """Read the file of the coordinator; see `_load` for the errors."""
    if "role" in (values := _read(path)):
        raise UserInputError(
            f"--config: {path}: role is {values['role']!r}, so this is a party's file, not the coordinator's",
            "give the coordinator's; a party's is for: mpcformer party",
        )
    config: CoordinatorConfig = _load(path, CoordinatorConfig)
    return config


def load_any(path: Path) -> AnyConfig:
    """Read the file of a party, if it has a `role`, or else of the coordinator."""
    return load_party(path) if "role" in _read(path) else load_coordinator(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserInputError(f"--config: {path} is larger than {MAX_BYTES >> 20} MiB", "check the path")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserInputError(f"--config: {path} is nested too deeply", "check the syntax") from None
    except (OSError, ValueError) as error:  # not TOML, no UTF-8, or a number of too many digits
        raise UserInputError(f"--config: {path}: {error}", "check the path and the syntax") from None


def _load(path: Path, kind: Any) -> Any:
    """Read a file. Relative paths in it are relative to the folder of the file.

    Raises:
        UserInputError: the file is unreadable or not TOML, or it contains wrong keys; the error names all of them.
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
    # For a union of roles, pydantic puts the role that the file states in front of the key.
    keys = loc[1:] if several_roles and loc and loc[0] in get_args(Role) else loc
    return ".".join(map(str, keys)) or "file"


def _reason(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _anchor(config: BaseModel, folder: Path) -> None:
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            _anchor(value, folder)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, BaseModel):
                    _anchor(item, folder)
        elif isinstance(value, dict):
            setattr(config, name, {key: folder / item for key, item in value.items()})
        elif isinstance(value, Path):
            setattr(config, name, folder / value)
        elif isinstance(value, OwnData):
            setattr(config, name, replace(value, path=folder / value.path))


def by_keys(error: MPCFormerError) -> MPCFormerError:
    """Return an error with the keys of files in place of the options that another command has for them."""

    def named(text: str) -> str:
        # A whole command in a remedy keeps its options.
        said, command, rest = text.partition("mpcformer ")
        return OPTIONS.sub(lambda found: found[1].replace("-", "_"), said) + command + rest

    error.what, error.remedy, error.told = named(error.what), named(error.remedy), named(error.told)
    error.args = tuple(named(each) if isinstance(each, str) else each for each in error.args)
    return error


def to_toml(config: BaseModel) -> str:
    """Return a configuration as TOML, without the settings that are None."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
