"""A dealer's evidence is judged by a command of each owner's own; here a script stands in for it."""

import sys
from pathlib import Path

import pytest

from mpcformer.errors import PartyError, UserInputError
from parties.session import attestation
from tests.parties import one_process

# It accepts one document, of one dealer.
SCRIPT = "import sys; sys.exit(0 if (sys.stdin.read(), sys.argv[-1]) == ('an enclave', 'dealer') else 4)"
COMMAND = [sys.executable, "-c", SCRIPT]


def test_a_command_decides() -> None:
    attestation.check(COMMAND, "dealer", b"an enclave")
    attestation.check(None, "dealer", b"")
    for dealer, evidence in (("dealer", b""), ("dealer", b"a laptop"), ("another", b"an enclave")):
        with pytest.raises(PartyError, match=f"{dealer}: its evidence was not accepted: .* status 4"):
            attestation.check(COMMAND, dealer, evidence)


def test_what_cannot_be_run_or_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserInputError, match="check_dealer: /nowhere/checker"):
        attestation.check(["/nowhere/checker"], "dealer", b"")
    monkeypatch.setattr(attestation, "TIMEOUT_S", 0.2)
    with pytest.raises(UserInputError, match="did not end within"):
        attestation.check([sys.executable, "-c", "import time; time.sleep(20)"], "dealer", b"")
    with pytest.raises(PartyError, match="more than 65536"):
        attestation.check(COMMAND, "dealer", bytes(attestation.MAX_BYTES + 1))
    with pytest.raises(UserInputError, match=r"evidence: .*missing"):
        attestation.read(tmp_path / "missing")
    (tmp_path / "large").write_bytes(bytes(attestation.MAX_BYTES + 1))
    with pytest.raises(UserInputError, match=r"evidence: .*large has 65537 bytes"):
        attestation.read(tmp_path / "large")
    assert attestation.read(None) == b""


@pytest.mark.parametrize("shown", ["an enclave", "a laptop"])
def test_a_session_begins_only_with_evidence_that_is_accepted(
    student: Path, data_dir: Path, tmp_path: Path, shown: str
) -> None:
    document = tmp_path / "evidence"
    document.write_text(shown)
    folder = tmp_path / "run"
    folder.mkdir()
    changes = {"dealer": {"evidence": document}, "data-owner": {"check_dealer": COMMAND}}
    if shown == "an enclave":
        assert len(one_process.run(student, data_dir, folder, changes).predictions.ids) == 2
    else:
        with pytest.raises(PartyError, match="dealer: its evidence was not accepted"):
            one_process.run(student, data_dir, folder, changes)
