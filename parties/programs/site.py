"""All parties of a deployment that runs programs, as processes of this machine with certificates of their own."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from parties.runs.processes import Processes
from parties.settings.config import (
    DEFAULT_POOL_MIB,
    UNLIMITED,
    DataOwnerConfig,
    DealerConfig,
    ModelOwnerConfig,
    PeerAddress,
    ProgramEntry,
)
from parties.settings.config_file import to_toml
from parties.wire.tls import make_certificates

DEALER, MODEL_OWNER, DATA_OWNER = "dealer", "model-owner", "data-owner"
PATIENCE_S = 60.0


def split(entry: ProgramEntry, owners: Mapping[str, str]) -> tuple[ProgramEntry, ProgramEntry]:
    """Return an entry with the inputs of both owners as the model owner's and the data owner's.

    Args:
        entry: the program.
        owners: who puts in each input, "model" or "data".
    """

    def of(word: str) -> ProgramEntry:
        inputs = {name: path for name, path in entry.inputs.items() if owners[name] == word}
        return entry.model_copy(update={"inputs": inputs})

    return of("model"), of("data")


class LocalSite:
    """Dealer and model owner as services of this machine, which end with the `with` block.

    Args:
        programs: for each program, its entry in the model owner's file and in the data owner's, without `out`.
        pool_mib: the MiB of corrections that wait at the model owner.
        patience_s: how long an owner waits for the other one's next message.
        threads: torch's threads of each party.

    Raises:
        PartyError: a party did not start.
    """

    def __init__(
        self,
        programs: Sequence[tuple[ProgramEntry, ProgramEntry]],
        *,
        pool_mib: int = DEFAULT_POOL_MIB,
        patience_s: float = PATIENCE_S,
        threads: int = 1,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
        self._common: dict[str, Any] = {"pool_mib": pool_mib, "deadline_s": patience_s, "threads": threads}
        self._programs = {
            party: [pair[rank].model_copy(update={"out": self._folder / party}) for pair in programs]
            for rank, party in enumerate((MODEL_OWNER, DATA_OWNER))
        }
        self._processes = Processes(self._folder)
        try:
            self._tls = make_certificates(self._folder / "tls", [DEALER, MODEL_OWNER, DATA_OWNER])
            for config in (self._dealer(), self._model_owner()):
                path = self._folder / f"{config.id}.toml"
                path.write_text(to_toml(config))
                arguments = "--config", str(path), "--address-file", str(self._address_file(config.id))
                self._processes.start(config.id, "parties", *arguments, "--with-parent", with_parent=True)
        except BaseException:
            self.close()
            raise

    def _service(self, name: str) -> dict[str, Any]:
        own = {"id": name, "role": name, "tls": self._tls[name], "grace_s": 0.0}
        return own | {"data_owners": [DATA_OWNER], "may_order": [DATA_OWNER]}

    def _dealer(self) -> DealerConfig:
        return DealerConfig(**self._service(DEALER), model_owners=[MODEL_OWNER])

    def _model_owner(self) -> ModelOwnerConfig:
        own = self._service(MODEL_OWNER) | self._common | UNLIMITED
        return ModelOwnerConfig(**own, dealers=[DEALER], programs=self._programs[MODEL_OWNER])

    def _address_file(self, name: str) -> Path:
        return self._folder / f"{name}.address"

    def data_owner(self) -> DataOwnerConfig:
        """Return the data owner's configuration, once dealer and model owner listen."""
        peers = {}
        for name in (DEALER, MODEL_OWNER):
            address = self._processes.address_of(name, self._address_file(name))
            peers[name] = PeerAddress(id=name, address=address)
        own: dict[str, Any] = {"id": DATA_OWNER, "role": DATA_OWNER, "tls": self._tls[DATA_OWNER]} | self._common
        return DataOwnerConfig(
            **own, dealer=peers[DEALER], model_owner=peers[MODEL_OWNER], programs=self._programs[DATA_OWNER]
        )

    def result(self, file: str, program: str = "*") -> Path:
        """Return the file of a result of a program that ran once, at one of the owners that learn it."""
        return next(self._folder.glob(f"*-owner/{program}-*/{file}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and remove their files."""
        self._processes.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
