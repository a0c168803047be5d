"""Finds what keeps a party from its peers: its configuration, certificate, data and port, and the way to each peer."""

from pathlib import Path

from mpcformer.doctor import Finding
from mpcformer.errors import UserInputError
from parties.diagnosis import holdings, own, peers
from parties.diagnosis.findings import warning, wrong
from parties.settings.config import AnyConfig, CoordinatorConfig, DataOwnerConfig, TlsFiles
from parties.settings.config_file import load_any
from parties.wire import identity


def diagnose(path: Path) -> list[Finding]:
    """Check the configuration of a party or of the coordinator as far as this machine can; return all findings."""
    try:
        config = load_any(path)
    except UserInputError as error:
        return [wrong("configuration", error.what, error.remedy)]
    rows = [
        Finding("configuration", f"{role_of(config)} {config.id!r}"),
        *own.certificates(config),
        *own.device(config),
    ]
    if _usable(config):
        rows += [*own.listening(config), *_holdings(config), *peers.all_of(config, role_of(config))]
    else:
        mend = "mend the certificate files first"
        rows += [
            *_holdings(config),
            warning("listening, peers", "not tried: they need a certificate and its key", mend),
        ]
    return rows


def role_of(config: AnyConfig) -> str:
    """Return the role in which other configurations list this party."""
    return "coordinator" if isinstance(config, CoordinatorConfig) else config.role


def _usable(config: AnyConfig) -> bool:
    """Return whether there is a certificate to show to others, even if it is expired or names another party."""
    try:
        return not isinstance(config.credentials, TlsFiles) or bool(identity.read(config.credentials))
    except UserInputError:
        return False


def _holdings(config: AnyConfig) -> list[Finding]:
    if isinstance(config, CoordinatorConfig):
        return [holdings.job(config)]
    if isinstance(config, DataOwnerConfig):
        return [*holdings.public_models(config), holdings.data(config), *holdings.programs(config)]
    return [*holdings.students(config), *holdings.programs(config)] if config.role == "model-owner" else []
