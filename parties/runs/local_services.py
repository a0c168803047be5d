"""Dealer and model owner as services of this machine, for a data owner that orders its own sessions from them."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from parties.runs.processes import Processes
from parties.settings.config import UNLIMITED, DataOwnerConfig, DealerConfig, ModelOwnerConfig, PeerAddress
from parties.settings.config_file import to_toml
from parties.wire.tls import make_certificates

DEALER, MODEL_OWNER, DATA_OWNER = "dealer", "model-owner", "data-owner"


class LocalServices:
    """Both services as processes, with certificates of their own and without a budget, once `start` was called.

    They end when `close` is called, with the `with` block, or when this process ends.

    Attributes:
        folder: a folder that no other user can read; it goes with the services.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
        self._tls = make_certificates(self.folder / "tls", [DEALER, MODEL_OWNER, DATA_OWNER])
        self._processes = Processes(self.folder)

    def start(self, *, services: Mapping[str, Any], model_owner: Mapping[str, Any]) -> None:
        """Start both.

        Args:
            services: what the configurations of both say, beside their names and whom they work with.
            model_owner: what the model owner's says in addition.

        Raises:
            PartyError: a party did not start.
        """
        common: dict[str, Any] = {"data_owners": [DATA_OWNER], "may_order": [DATA_OWNER], "grace_s": 0.0, **services}
        try:
            for config in (
                DealerConfig(**self._named(DEALER), **common, model_owners=[MODEL_OWNER]),
                ModelOwnerConfig(**self._named(MODEL_OWNER), **common, dealers=[DEALER], **UNLIMITED, **model_owner),
            ):
                path = self.folder / f"{config.id}.toml"
                path.write_text(to_toml(config))
                arguments = "--config", str(path), "--address-file", str(self._address_file(config.id))
                self._processes.start(config.id, "parties", *arguments, "--with-parent", with_parent=True)
        except BaseException:
            self.close()
            raise

    def _named(self, name: str) -> dict[str, Any]:
        return {"id": name, "role": name, "tls": self._tls[name]}

    def _address_file(self, name: str) -> Path:
        return self.folder / f"{name}.address"

    def data_owner_with(self, **own: Any) -> DataOwnerConfig:
        """Return the data owner's configuration, once both services listen.

        Args:
            own: what it says beside its name and the services.

        Raises:
            PartyError: a service ended, or does not listen in time.
        """
        addresses = {name: self._processes.address_of(name, self._address_file(name)) for name in (DEALER, MODEL_OWNER)}
        peers = {name: PeerAddress(id=name, address=address) for name, address in addresses.items()}
        return DataOwnerConfig(**self._named(DATA_OWNER), dealer=peers[DEALER], model_owner=peers[MODEL_OWNER], **own)

    def close(self) -> None:
        """End the processes and remove their files; nothing happens the second time."""
        self._processes.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
