"""Runs without TLS, for measurements on one machine, work, say so everywhere, and do not mix with TLS."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from parties.roles.dealer import DealerService
from parties.runs import local_run
from parties.runs.simulation import LocalRunOptions
from parties.settings.config import Credentials, Insecure, Plaintext, TlsFiles
from parties.settings.job import JobDescription
from parties.stubs import parties_pb2 as pb
from parties.stubs import parties_pb2_grpc as rpc
from parties.wire.callers import PARTY_HEADER
from parties.wire.frames import open_channel, start_server
from parties.wire.tls import make_certificates

SESSION = b"s" * 16
TIMEOUT_S = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    return make_certificates(tmp_path_factory.mktemp("tls"), ["dealer", "model-owner", "stranger"])


@contextmanager
def dealer(credentials: Credentials) -> Iterator[str]:
    service = DealerService("dealer", ["model-owner", "data-owner"])
    with service.session(SESSION, "model-owner", "data-owner"):
        server, address = start_server(
            lambda server: rpc.add_DealerServicer_to_server(service, server), "127.0.0.1:0", credentials
        )
        yield address
        server.stop(None)


def call(address: str, credentials: Credentials, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    with open_channel(address, "dealer", credentials) as channel:
        request = pb.OpenSessionRequest(session_id=SESSION)
        return bytes(rpc.DealerStub(channel).OpenSession(iter([request]), timeout=TIMEOUT_S, metadata=metadata).seed)


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    code: grpc.StatusCode = error.value.code()
    return code


def test_a_run_without_tls_works_and_says_so_everywhere(
    student: Path, data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = LocalRunOptions(student, None, JobDescription("sst2", limit=4), data_dir, insecure=Insecure(plaintext=True))
    local_run.check(job, tmp_path / "run")
    values = local_run.run(job, tmp_path / "run")
    assert values["label_agreement"] == 1.0
    assert values["network"]["transport"] == "gRPC without TLS on the loopback interface"
    assert values["seeds"]["protocol"] == "fresh, from the operating system"
    assert "INSECURE" in capfd.readouterr().err
    written = [
        "results.json",
        "report.html",
        *(f"logs/{party}.log" for party in ("dealer", "model-owner", "data-owner")),
    ]
    for name in written:
        assert "INSECURE" in (tmp_path / "run" / name).read_text(), name
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["job"]["insecure"] == {"plaintext": True, "fixed_seed": None}


def test_tls_and_plaintext_do_not_mix(files: dict[str, TlsFiles]) -> None:
    plain, sealed = Plaintext(id="model-owner"), files["model-owner"]
    for server, client in ((Plaintext(id="dealer"), sealed), (files["dealer"], plain)):
        with dealer(server) as address, pytest.raises(grpc.RpcError) as caught:
            call(address, client)
        assert code_of(caught) == grpc.StatusCode.UNAVAILABLE
    for server, client in ((Plaintext(id="dealer"), plain), (files["dealer"], sealed)):
        with dealer(server) as address:
            assert len(call(address, client)) == 16


def test_a_caller_that_is_in_no_list_is_refused_without_tls_too() -> None:
    with dealer(Plaintext(id="dealer")) as address:
        with pytest.raises(grpc.RpcError, match=r"names \['stranger'\], which is not served here") as caught:
            call(address, Plaintext(id="stranger"))
        assert code_of(caught) == grpc.StatusCode.PERMISSION_DENIED
        silent = grpc.secure_channel(address, grpc.local_channel_credentials())
        with silent, pytest.raises(grpc.RpcError, match="names \\['nobody'\\]") as caught:
            rpc.DealerStub(silent).OpenSession(iter([pb.OpenSessionRequest(session_id=SESSION)]), timeout=TIMEOUT_S)
        assert code_of(caught) == grpc.StatusCode.PERMISSION_DENIED


def test_with_tls_only_the_certificate_says_who_calls(files: dict[str, TlsFiles]) -> None:
    with dealer(files["dealer"]) as address:
        with pytest.raises(grpc.RpcError, match=r"names \['stranger'\]") as caught:
            call(address, files["stranger"], metadata=((PARTY_HEADER, "model-owner"),))
        assert code_of(caught) == grpc.StatusCode.PERMISSION_DENIED
