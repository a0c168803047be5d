"""A dealer and a model owner with a shelf of students, as services of this process, and three data owners."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from parties.roles.dealer import Dealer
from parties.roles.model_owner import ModelOwner
from parties.roles.reload import reload
from parties.roles.service import SessionHost
from parties.settings.config import (
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    ModelEntry,
    ModelOwnerConfig,
    PeerAddress,
    StudentEntry,
    TlsFiles,
)
from parties.settings.config_file import to_toml
from parties.settings.job import JobDescription
from parties.settings.metrics import REGISTRY
from parties.settings.public_files import export_public
from parties.wire.frames import start_server
from parties.wire.tls import make_certificates

DATA_OWNERS = ["anna", "ben", "carla"]


@dataclass
class Shelf:
    """A deployment whose model owner has several students.

    Args:
        folder: of its files.
        owner: the model owner.
        data_owners: the file of each data owner.
        coordinator: of an evaluation for Carla, which names no model.
    """

    folder: Path
    owner: ModelOwner
    data_owners: dict[str, Path]
    coordinator: CoordinatorConfig

    @property
    def file(self) -> Path:
        """The model owner's file."""
        return self.folder / "model-owner.toml"

    def reload(self, students: list[dict[str, Any]] | None = None, **changes: Any) -> bool:
        """Write other students into the model owner's file, let it read that again, and return whether it did."""
        if students is not None:
            kept = ModelOwnerConfig.model_validate(self.owner._config.model_dump(exclude_none=True) | changes)
            self.file.write_text(to_toml(kept.model_copy(update={"students": of_tables(students)})))
        before = _failed()
        reload(self.file, self.owner)
        return _failed() == before


def _failed() -> float:
    return REGISTRY.get_sample_value("mpcformer_reloads_total", {"how": "failed"}) or 0.0


def of_tables(students: list[dict[str, Any]]) -> list[StudentEntry]:
    """Return the tables [[students]] as a file holds them."""
    common = {
        "role": "model-owner",
        "id": "m",
        "insecure": {"plaintext": True},
        "dealers": ["d"],
        "coordinators": ["c"],
    }
    return ModelOwnerConfig(**common, data_owners=DATA_OWNERS, students=students).students


@contextmanager
def shelf_of(
    folder: Path, students: list[dict[str, Any]], public: Mapping[str, Path], **model_owner: Any
) -> Iterator[Shelf]:
    """Start dealer and model owner, with certificates; yield the deployment, and end it.

    Args:
        folder: an empty one.
        students: the tables [[students]].
        public: by name, the students whose public files each data owner has.
        model_owner: further keys of the model owner's file.
    """
    files = make_certificates(folder / "tls", ["dealer", "model-owner", "coordinator", *DATA_OWNERS])
    common: dict[str, Any] = {"data_owners": DATA_OWNERS, "may_order": DATA_OWNERS, "coordinators": ["coordinator"]}
    common |= {"grace_s": 0.0, "max_sessions": 8}
    dealer = DealerConfig(role="dealer", id="dealer", tls=files["dealer"], model_owners=["model-owner"], **common)
    config = ModelOwnerConfig(
        role="model-owner",
        id="model-owner",
        tls=files["model-owner"],
        dealers=["dealer"],
        students=of_tables(students),
        budget_file=folder / "budget.json",
        **common | model_owner,
    )
    entries = [
        ModelEntry(name=name, public_model=export_public(path, folder / f"public-{name}"))
        for name, path in public.items()
    ]
    with ExitStack() as stop:
        owner = ModelOwner(config)
        peers = {
            "dealer": PeerAddress(id="dealer", address=_serve(Dealer(dealer), dealer, stop)),
            "model_owner": PeerAddress(id="model-owner", address=_serve(owner, config, stop)),
        }
        found = Shelf(folder, owner, {}, CoordinatorConfig(**_coordinator(files["coordinator"], peers)))
        found.file.write_text(to_toml(config))
        for name in DATA_OWNERS:
            mine = DataOwnerConfig(role="data-owner", id=name, tls=files[name], models=entries, **peers)
            found.data_owners[name] = folder / f"{name}.toml"
            found.data_owners[name].write_text(to_toml(mine))
        yield found


def _coordinator(tls: TlsFiles, peers: Mapping[str, PeerAddress]) -> dict[str, Any]:
    job = JobDescription(task="sst2", limit=2, batch_size=2)
    return {"tls": tls, "listen": "127.0.0.1:0", "data_owner": "carla", "job": job, **peers}


def _serve(party: Dealer | ModelOwner, config: DealerConfig | ModelOwnerConfig, stop: ExitStack) -> str:
    more = {"models": party.models} if isinstance(party, ModelOwner) else {}
    host = SessionHost(config, config.role, party.run_session, **more)

    def add(server: grpc.Server) -> None:
        party.add_to(server)
        host.add_to(server)

    server, address = start_server(add, config.listen, config.credentials, rules=party.rules | host.rules)
    stop.callback(server.stop, 0)
    stop.callback(host.drain, 0)
    return address
