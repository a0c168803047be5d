"""What cannot go well is refused before anybody waits for it, by whom it concerns, and with a remedy of its own."""

import datetime
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mpcformer import __version__
from mpcformer.errors import PartyError, UserInputError
from mpcformer.modeling.tokenizer import Limits
from mpcformer.run_folder import RunFolder
from mpcformer.tasks import Examples, encode
from mpcformer.tasks.batching import LONGEST_TEXT
from parties.diagnosis import diagnose, own
from parties.roles.start_party import run_party
from parties.runs import deployed_run
from parties.session.membership import Membership
from parties.session.party_state import greeting_error
from parties.settings.config import (
    PROTOCOL_VERSION,
    CoordinatorConfig,
    DealerConfig,
    TlsFiles,
)
from parties.settings.config_file import by_keys, load_any, load_coordinator, load_party, to_toml
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire import tls
from parties.wire.frames import open_channel, start_server
from parties.wire.tls import make_certificates
from tests.faults.cast import PARTIES, Cast, Gate, cast_of
from tests.parties.test_handshakes import Authority
from tests.parties.test_service import Service, ask_for_seed, session

DAY, PAST = datetime.timedelta(days=1), datetime.timedelta(minutes=-1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), [*PARTIES, "other-coordinator", "other-data-owner"])


@pytest.fixture
def cast(files: dict[str, TlsFiles], student: Path, data_dir: Path, tmp_path: Path) -> Iterator[Cast]:
    with cast_of(
        tmp_path,
        student,
        data_dir,
        JobDescription("sst2", batch_size=2, limit=4),
        tls=files,
        join_timeout_s={"coordinator": 10.0, "data-owner": 10.0},
    ) as made:
        yield made


def written(config: Any, folder: Path, **changes: Any) -> Path:
    """Write a configuration with other values, which need not be allowed, and return its file."""
    path = folder / f"{config.id}.toml"
    values = tomllib.loads(to_toml(config)) | {
        key: tomllib.loads(f"v = {value}")["v"] for key, value in changes.items()
    }
    path.write_text(tomli_w.dumps(values))
    return path


@pytest.mark.parametrize(
    ("role", "changes", "message"),
    [
        ("dealer", {"id": '""'}, "id: String should match"),
        ("dealer", {"data_owners": '["a", ""]'}, "data_owners.1: String should match"),
        ("dealer", {"model_owners": '["data-owner"]'}, "data-owner has two roles"),
        ("dealer", {"data_owners": '["dealer"]'}, "dealer has two roles"),
        ("model-owner", {"coordinators": '["data-owner"]'}, "data-owner has two roles"),
        ("dealer", {"max_sessions": "true"}, "max_sessions: Input should be a valid integer"),
        ("dealer", {"max_sessions": '"4"'}, "max_sessions: Input should be a valid integer"),
        ("dealer", {"join_timeout_s": "true"}, "join_timeout_s: Input should be a valid number"),
        ("dealer", {"join_timeout_s": "1e300"}, "join_timeout_s: Input should be less than"),
        ("dealer", {"grace_s": "inf"}, "grace_s: Input should be less than"),
        ("model-owner", {"max_idle_s": "nan"}, "max_idle_s: Input should be"),
        ("model-owner", {"public_embeddings": '"yes"'}, "public_embeddings: Input should be a valid boolean"),
        ("coordinator", {"join_timeout_s": "1e300"}, "join_timeout_s: Input should be less than"),
    ],
)
def test_values_that_no_configuration_may_have(
    cast: Cast, tmp_path: Path, role: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserInputError, match=re.escape(message)):
        load_any(written(cast.configs[role], tmp_path, **changes))


@pytest.mark.parametrize("field", ["limit", "batch_size", "max_length"])
@pytest.mark.parametrize("value", [str(1 << 32), "true", '"4"', "4.5"])
def test_numbers_of_a_job_fit_into_its_message(cast: Cast, tmp_path: Path, field: str, value: str) -> None:
    path = written(cast.configs["coordinator"], tmp_path)
    text = re.sub(rf"(?m)^{field} = .*$", "", path.read_text())
    path.write_text(text.replace("[job]", f"[job]\n{field} = {value}"))
    with pytest.raises(UserInputError, match=f"job.{field}"):
        load_coordinator(path)


@pytest.mark.parametrize("text", ["a = [" * 100_000, "a = " + "1" * 5000, "\xff", "", "role = 3", "[[role]]"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "party.toml"
    path.write_bytes(text.encode("latin-1"))
    for load in (load_party, load_coordinator, load_any):
        with pytest.raises(UserInputError):
            load(path)


def test_metrics_have_a_port_of_their_own(cast: Cast, tmp_path: Path) -> None:
    config = cast.configs["dealer"]
    assert isinstance(config, DealerConfig)
    path = written(config, tmp_path, metrics=f'"{config.listen}"')
    with pytest.raises(UserInputError, match=r"metrics: .* has the port of listen"):
        load_party(path)
    assert [finding.status for finding in diagnose(path)] == [2]


@pytest.mark.parametrize("kind", ["expired", "foreign", "misnamed", "two names"])
@pytest.mark.parametrize("role", ["dealer", "model-owner", "data-owner", "coordinator"])
def test_a_certificate_that_nobody_takes_is_refused_at_the_start(
    cast: Cast, tmp_path: Path, capfd: pytest.CaptureFixture[str], role: str, kind: str
) -> None:
    authority, others = Authority.new(), Authority.new()
    issued = {
        "expired": lambda: authority.issue(tmp_path / "made", role, authority, PAST),
        "foreign": lambda: others.issue(tmp_path / "made", role, authority),
        "misnamed": lambda: authority.issue(tmp_path / "made", "somebody", authority),
        "two names": lambda: two_names(tmp_path / "made", authority, role, "other"),
    }
    path = tmp_path / f"{role}.toml"
    config = cast.configs[role].model_copy(update={"tls": issued[kind]()})
    path.write_text(to_toml(config))
    started = time.monotonic()
    if role == "coordinator":
        assert isinstance(config, CoordinatorConfig)
        with pytest.raises(UserInputError) as caught:
            deployed_run.run(config, tmp_path / "run")
        said = str(caught.value)
        assert not list(tmp_path.glob("run*"))
    else:
        assert run_party(path) == 2
        said = capfd.readouterr().err
    words = {"expired": "this machine's clock says", "foreign": "did not sign"}
    assert words.get(kind, "expected") in said
    assert time.monotonic() - started < 5


def two_names(folder: Path, authority: Authority, *names: str) -> TlsFiles:
    """Return files whose certificate names several parties."""
    key = ec.generate_private_key(ec.SECP256R1())
    plain = tls._certificate(names[0], key, authority.certificate, authority.key, DAY)
    builder = x509.CertificateBuilder(
        issuer_name=plain.issuer,
        subject_name=plain.subject,
        public_key=plain.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=plain.not_valid_before_utc,
        not_valid_after=plain.not_valid_after_utc,
    ).add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    assert plain.signature_hash_algorithm is not None
    made = builder.sign(authority.key, plain.signature_hash_algorithm)
    return authority.write(folder, made, key, authority)


def test_a_certificate_of_two_names_gets_no_seed(tmp_path: Path) -> None:
    """With it the data owner could take the model owner's seed too."""
    authority = Authority.new()
    known = {}
    for name in ("dealer", "coordinator", "data-owner"):
        known[name] = authority.issue(tmp_path / name, name, authority)
    known["both"] = two_names(tmp_path / "both", authority, "data-owner", "model-owner")
    service = Service(known, coordinators=["coordinator"], data_owners=["data-owner"])
    service.begin(session(1))
    with pytest.raises(grpc.RpcError, match="which is not served here") as caught:
        ask_for_seed(service, session(1), "both")
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with (
        open_channel(service.address, "dealer", known["both"]) as channel,
        pytest.raises(grpc.RpcError, match="names 2 parties, expected one"),
    ):
        rpc.PartyStub(channel).Diagnose(iter([pb.DiagnoseRequest()]), timeout=5)
    assert ask_for_seed(service, session(1), "data-owner")
    service.close()


@pytest.mark.parametrize("missing", ["public_model", "data_dir"])
def test_a_data_owner_without_its_files_fails_at_its_start(
    cast: Cast, tmp_path: Path, capfd: pytest.CaptureFixture[str], missing: str
) -> None:
    started = time.monotonic()
    assert run_party(written(cast.configs["data-owner"], tmp_path, **{missing: '"nowhere"'})) == 2
    assert "nowhere" in capfd.readouterr().err
    assert time.monotonic() - started < 5


def test_doctor_does_not_advise_to_end_the_party_itself(cast: Cast, tmp_path: Path) -> None:
    authority = Authority.new()
    config = cast.configs["dealer"]
    assert isinstance(config, DealerConfig)
    expired = config.model_copy(update={"tls": authority.issue(tmp_path / "made", "dealer", authority, PAST)})
    assert expired.tls is not None
    server, _ = start_server(lambda server: None, config.listen, expired.tls)
    (finding,) = own.listening(expired)
    assert "perhaps by dealer itself" in finding.found
    assert finding.remedy.startswith("mend the certificate")
    server.stop(0)


def test_doctor_looks_at_the_device(cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = [
        row for row in diagnose(written(cast.configs["dealer"], tmp_path, device='"cuda"')) if row.check == "device"
    ]
    assert [row.status for row in rows] == [2]
    assert "--device" not in rows[0].found + rows[0].remedy, "a file has a key, and no option"


def test_remedies_name_keys_where_there_are_no_options() -> None:
    error = by_keys(UserInputError("--max-length: 3 is outside 8..32", "give --data-dir, or mpcformer ask --resume"))
    assert (error.what, error.remedy) == (
        "max_length: 3 is outside 8..32",
        "give data_dir, or mpcformer ask --resume",
    )
    assert str(error) == f"{error.what}\nfix: {error.remedy}"
    whole = "distil it first: mpcformer distill --task TASK --out DIR"
    assert by_keys(UserInputError("no student", whole)).remedy == whole


@pytest.mark.parametrize(
    "place", ["below a file", *(pytest.param(name, marks=pytest.mark.slow) for name in ("too long", "read-only"))]
)
def test_folders_that_cannot_be_written_are_refused_before_anybody_waits(
    cast: Cast, tmp_path: Path, place: str
) -> None:
    config = cast.configs["coordinator"]
    path = written(config, tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    out = {
        "below a file": tmp_path / "file" / "run",
        "too long": tmp_path / ("x" * 300),
        "read-only": Path("/proc/run"),
    }
    command = [sys.executable, "-c", "from mpcformer.cli import main; main()", "coordinate", "--config", str(path)]
    done = subprocess.run([*command, "--out", str(out[place])], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "fix: " in done.stderr


def test_a_folder_that_appears_during_the_run_loses_nothing(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    cast.start("dealer", "model-owner", "data-owner")
    config, publish = cast.configs["coordinator"], RunFolder.publish
    assert isinstance(config, CoordinatorConfig)

    def disturbed(self: RunFolder, part: Path | None = None) -> None:
        self.path.mkdir()
        (self.path / "other").touch()
        publish(self, part)

    monkeypatch.setattr(RunFolder, "publish", disturbed)
    with pytest.raises(UserInputError, match="not empty") as caught:
        deployed_run.run(config, cast.out)
    assert "something else took this name meanwhile" in caught.value.remedy
    assert "--resume goes on from batch 2" in caught.value.remedy
    assert (cast.out.with_name("run.partial") / "results.json").is_file()


def test_an_interrupted_coordinator_says_how_to_go_on(cast: Cast) -> None:
    path = written(
        cast.configs["coordinator"].model_copy(update={"job": JobDescription("sst2", batch_size=1)}), cast.folder
    )
    # The data owner waits in a later batch, so that the run cannot end before it is interrupted.
    cast.start("dealer", "model-owner", "data-owner", gates={"data-owner": Gate(cast.folder, "offline last")})
    command = [sys.executable, "-c", "from mpcformer.cli import main; main()", "coordinate", "--config", str(path)]
    with subprocess.Popen(
        [*command, "--out", str(cast.out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        journal = cast.out.with_name("run.partial") / "journal.jsonl"
        deadline = time.monotonic() + 60
        while not journal.is_file() or journal.read_text().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "--resume goes on from batch" in said
    assert "interrupted" in said


def test_a_very_long_text_is_refused_before_it_is_tokenised() -> None:
    def never(*columns: Any, **options: Any) -> Any:
        raise AssertionError("it was tokenised")

    examples = Examples([7], [("word " * 2_000_000,)], [0.0], ["x"])
    started = time.monotonic()
    with pytest.raises(UserInputError, match="example 7 has 10000000 characters"):
        encode(never, examples, limits=Limits(512))
    assert time.monotonic() - started < 1
    seen: list[int] = []

    def count(column: list[str], **options: Any) -> Any:
        seen.extend(map(len, column))
        return {"input_ids": [[1]], "token_type_ids": [[0]]}

    encode(count, examples, limits=Limits(512), max_length=8)
    assert seen == [LONGEST_TEXT]


def test_another_release_is_refused(files: dict[str, TlsFiles]) -> None:
    hello = pb.Hello(protocol_version=PROTOCOL_VERSION, role="dealer", release="0.0.1")
    error = greeting_error("dealer", "dealer", hello, "")
    assert error is not None
    assert "it runs release 0.0.1" in error.what
    hello.release = __version__
    assert greeting_error("dealer", "dealer", hello, "") is None
    config = DealerConfig(
        role="dealer",
        id="dealer",
        tls=files["dealer"],
        coordinators=["coordinator"],
        data_owners=["data-owner"],
        model_owners=["model-owner"],
    )
    membership = Membership(config, role="dealer", coordinator_id="coordinator")
    membership.listen(iter([pb.Command(job=pb.Job(release="0.0.1"))]))
    with pytest.raises(PartyError, match=r"coordinator: it runs release 0\.0\.1"):
        membership.job(5)
