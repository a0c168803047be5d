"""All parties of a deployment that runs programs, as processes of this machine with certificates of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parties.runs.local_services import DATA_OWNER, MODEL_OWNER, LocalServices
from parties.settings.config import DEFAULT_POOL_MIB, DataOwnerConfig, ProgramEntry

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


class LocalSite(LocalServices):
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
        super().__init__()
        services: dict[str, Any] = {"deadline_s": patience_s, "threads": threads}
        self._data_owner = services | {"pool_mib": pool_mib, "programs": self._placed(DATA_OWNER, programs)}
        own = {"pool_mib": pool_mib, "programs": self._placed(MODEL_OWNER, programs)}
        self.start(services=services, model_owner=own)

    def _placed(self, party: str, programs: Sequence[tuple[ProgramEntry, ProgramEntry]]) -> list[ProgramEntry]:
        """Return an owner's entries, with a folder for its results."""
        rank = (MODEL_OWNER, DATA_OWNER).index(party)
        return [pair[rank].model_copy(update={"out": self.folder / party}) for pair in programs]

    def data_owner(self) -> DataOwnerConfig:
        """Return the data owner's configuration, once dealer and model owner listen."""
        return self.data_owner_with(**self._data_owner)

    def result(self, file: str, program: str = "*") -> Path:
        """Return the file of a result of a program that ran once, at one of the owners that learn it."""
        return next(self.folder.glob(f"*-owner/{program}-*/{file}"))
