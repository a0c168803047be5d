"""A run of a program on this machine: all parties of a deployment, as processes with certificates of their own."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpcformer.engines.base import DATA_OWNER as DATA_RANK
from mpcformer.errors import UserInputError
from parties.program_process.process import Part, task_of
from parties.programs.deployed import ProgramRun, Tell, play
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
LIMIT_S = 3600.0
# The name of the one program in the files of the parties.
NAME = "program"


def plan(program: str, inputs: Mapping[str, Path], tell: Tell) -> None:
    """Tell what a program costs, and look at those inputs that are given.

    Raises:
        UserInputError: the program or an input is not as declared.
    """
    entry = ProgramEntry(name=NAME, file=_absolute(program), inputs=_resolved(inputs))
    with Part(task_of(entry, rank=DATA_RANK, threads=1, all_inputs=True, plan_only=True), DATA_OWNER) as part:
        tell(part.next())


def run_here(
    program: str,
    inputs: Mapping[str, Path],
    out: Path,
    tell: Tell = lambda told: None,
    *,
    pool_mib: int = DEFAULT_POOL_MIB,
    patience_s: float = PATIENCE_S,
    limit_s: float = LIMIT_S,
    threads: int = 1,
) -> ProgramRun:
    """Run a program between processes of this machine, and leave its results in `out`.

    Args:
        program: FILE, or FILE:NAME.
        inputs: the file of each input.
        out: the folder of the results, NAME.npy each. No file in it is replaced.
        tell: called with what the run will cost, before anything else is started.
        pool_mib: the MiB of corrections that wait at the model owner.
        patience_s: how long an owner waits for the other one's next message.
        limit_s: how long the run may take.
        threads: torch's threads of each party.

    Raises:
        MPCFormerError: the program, an input or a party is at fault. Nothing is left in `out`.
    """
    entry = ProgramEntry(name=NAME, file=_absolute(program), inputs=_resolved(inputs), limit_s=limit_s)
    task = task_of(entry, rank=DATA_RANK, threads=threads, all_inputs=True)
    with Part(task, DATA_OWNER) as part:
        told = part.next()
        wanted = [out / f"{name}.npy" for name in told["reveal"]]
        for path in wanted:
            if path.exists():
                raise UserInputError(f"--out: {path} exists", "give another folder, or move the file away")
        tell(told)
        site = _Site(entry, told["owners"], pool_mib=pool_mib, patience_s=patience_s, threads=threads)
        try:
            done = play(site.data_owner(), site.entries[DATA_OWNER], part, told)
            out.mkdir(parents=True, exist_ok=True)
            for path in wanted:
                shutil.move(site.result(path.name), path)
        finally:
            site.close()
    return ProgramRun(told, done.report, wanted)


def _absolute(program: str) -> Path:
    file, colon, name = program.partition(":")
    return Path(f"{Path(file).resolve()}{colon}{name}")


def _resolved(inputs: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path.resolve() for name, path in inputs.items()}


class _Site:
    """Dealer and model owner as services of this machine.

    Args:
        entry: the program, with the inputs of both owners.
        owners: who puts in each input, "model" or "data".
        pool_mib, patience_s, threads: as for `run_here`.
    """

    def __init__(
        self, entry: ProgramEntry, owners: Mapping[str, str], *, pool_mib: int, patience_s: float, threads: int
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mpcformer-"))
        self._common: dict[str, Any] = {"pool_mib": pool_mib, "deadline_s": patience_s, "threads": threads}
        self.entries = {
            party: entry.model_copy(
                update={
                    "inputs": {name: path for name, path in entry.inputs.items() if owners[name] == word},
                    "out": self._folder / party,
                }
            )
            for party, word in ((MODEL_OWNER, "model"), (DATA_OWNER, "data"))
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
        return ModelOwnerConfig(**own, dealers=[DEALER], programs=[self.entries[MODEL_OWNER]])

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
            **own, dealer=peers[DEALER], model_owner=peers[MODEL_OWNER], programs=[self.entries[DATA_OWNER]]
        )

    def result(self, name: str) -> Path:
        """Return the file of a result, at one of the owners that learn it."""
        return next(self._folder.glob(f"*-owner/*/{name}"))

    def close(self) -> None:
        """End the processes and remove their files."""
        self._processes.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
