"""What one party of a program's session is to do: written to a file for its process, which nobody else can read."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpcformer.errors import PartyError
from mpcformer.files import write_text
from parties.settings.config import TlsFiles

DEALER, MODEL_OWNER, DATA_OWNER = "dealer", "model-owner", "data-owner"
# The owners in the order of their ranks.
OWNERS = MODEL_OWNER, DATA_OWNER
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Task:
    """A party's task.

    Args:
        role: "dealer", "model-owner" or "data-owner"; it is the party's id, too.
        session_id: 16 bytes.
        tls: the party's files.
        folder: where parties write their addresses and reports, and owners their results.
        program, digest: the program's file, as FILE or FILE:NAME, and its digest; empty for the dealer.
        inputs: the files of this party's own inputs.
        pool_bytes: how many bytes of corrections wait at the model owner before they are used.
        patience_s: how long an owner waits for the other one's next message.
        threads: torch's threads.
    """

    role: str
    session_id: bytes
    tls: TlsFiles
    folder: Path
    program: str
    digest: str
    inputs: dict[str, Path]
    pool_bytes: int
    patience_s: float
    threads: int

    @property
    def rank(self) -> int:
        """The owner's rank."""
        return OWNERS.index(self.role)

    @property
    def peer(self) -> str:
        """The other owner."""
        return OWNERS[1 - self.rank]

    @property
    def report(self) -> Path:
        """The file in which the party says how it ended."""
        return self.folder / f"{self.role}.report"

    @property
    def results(self) -> Path:
        """The folder of an owner's results."""
        return self.folder / f"{self.role}-results"

    def address_file(self, role: str) -> Path:
        """Return the file in which a party that serves writes its address."""
        return self.folder / f"{role}.address"

    def address_of(self, role: str) -> str:
        """Wait for a party's address.

        Raises:
            PartyError: it did not start in time.
        """
        path, deadline = self.address_file(role), time.monotonic() + START_TIMEOUT_S
        while not path.is_file():
            if time.monotonic() > deadline:
                raise PartyError(role, f"did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        return path.read_text()

    def save(self, path: Path) -> None:
        """Write the task to a file."""
        fields: dict[str, Any] = asdict(self) | {"session_id": self.session_id.hex(), "tls": self.tls.model_dump()}
        write_text(path, json.dumps(fields, default=str))

    @staticmethod
    def load(path: Path) -> "Task":
        """Read a task that `save` wrote."""
        fields = json.loads(path.read_text())
        fields["session_id"] = bytes.fromhex(fields["session_id"])
        fields["tls"] = TlsFiles(**fields["tls"])
        fields["folder"] = Path(fields["folder"])
        fields["inputs"] = {name: Path(value) for name, value in fields["inputs"].items()}
        return Task(**fields)
