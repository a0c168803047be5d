"""Dealer and model owner as services of this process, with TLS, and the files of two owners who run programs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from parties.roles.dealer import Dealer
from parties.roles.model_owner import ModelOwner
from parties.roles.service import SessionHost
from parties.settings.config import (
    UNLIMITED,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PeerAddress,
    ProgramEntry,
)
from parties.settings.config_file import to_toml
from parties.wire.frames import start_server
from parties.wire.tls import make_certificates

DEALER, MODEL_OWNER, DATA_OWNER = "dealer", "model-owner", "data-owner"
# The longest time until a service has ended its session.
CLEAN_S = 10.0


@dataclass
class Site:
    """A deployment that runs.

    Args:
        config: the data owner's file.
        folder: of the owners' results, in "model-owner" and "data-owner".
        host: the model owner's sessions.
    """

    config: Path
    folder: Path
    host: SessionHost

    def results(self, party: str) -> list[Path]:
        """Return what is in a party's folder of results, by their names."""
        return sorted(path for path in (self.folder / party).rglob("*") if path.is_file())

    def is_clean(self) -> bool:
        """Return whether soon nothing is left of runs that failed, and no session runs.

        A service ends its session a moment after the data owner has its results.
        """
        end = time.monotonic() + CLEAN_S
        while list(self.folder.glob("*-owner/*.partial")) or self.host._running:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def _serve(config: DealerConfig | ModelOwnerConfig, stop: ExitStack) -> tuple[SessionHost, str]:
    party = Dealer(config) if isinstance(config, DealerConfig) else ModelOwner(config)
    host = SessionHost(config, config.role, party.run_session)

    def add(server: grpc.Server) -> None:
        party.add_to(server)
        host.add_to(server)

    server, address = start_server(add, config.listen, config.credentials, rules=party.rules | host.rules)
    stop.callback(lambda: server.stop(0).wait(5))
    stop.callback(host.drain, 0.0)
    return host, address


@contextmanager
def program_site(
    folder: Path,
    model_programs: Sequence[Mapping[str, Any]],
    data_programs: Sequence[Mapping[str, Any]],
    model_owner: Mapping[str, Any] | None = None,
    dealer: Mapping[str, Any] | None = None,
    data_owner: Mapping[str, Any] | None = None,
) -> Iterator[Site]:
    """Start dealer and model owner, and write the data owner's file.

    Args:
        folder: an empty one.
        model_programs, data_programs: the programs in both owners' files, without `out`.
        model_owner, dealer, data_owner: changes to the files.
    """
    tls = make_certificates(folder / "tls", [DEALER, MODEL_OWNER, DATA_OWNER])
    common = {"deadline_s": 60.0, "join_timeout_s": 30.0}

    def entries(party: str, programs: Sequence[Mapping[str, Any]]) -> list[ProgramEntry]:
        return [ProgramEntry(**{"out": folder / party} | dict(program)) for program in programs]

    def service(name: str) -> dict[str, Any]:
        own = {"id": name, "role": name, "tls": tls[name], "grace_s": 0.0} | common
        return own | {"data_owners": [DATA_OWNER], "may_order": [DATA_OWNER]}

    with ExitStack() as stop:
        dealers = DealerConfig(**service(DEALER) | {"model_owners": [MODEL_OWNER]} | dict(dealer or {}))
        owners = ModelOwnerConfig(
            **service(MODEL_OWNER)
            | {"dealers": [DEALER], "programs": entries(MODEL_OWNER, model_programs)}
            | {"budget_file": folder / "budget.json"}
            | UNLIMITED
            | dict(model_owner or {})
        )
        dealer_address = _serve(dealers, stop)[1]
        host, address = _serve(owners, stop)
        config = DataOwnerConfig(
            **{
                **common,
                "role": DATA_OWNER,
                "id": DATA_OWNER,
                "tls": tls[DATA_OWNER],
                "dealer": PeerAddress(id=DEALER, address=dealer_address),
                "model_owner": PeerAddress(id=MODEL_OWNER, address=address),
                "programs": entries(DATA_OWNER, data_programs),
                **dict(data_owner or {}),
            }
        )
        path = folder / "data-owner.toml"
        path.write_text(to_toml(config))
        yield Site(path, folder, host)
