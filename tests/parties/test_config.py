"""Party configurations: written and read back alike, every wrong key said at once."""

from pathlib import Path

import pytest

from mpcformer.errors import UserInputError
from parties.config import CoordinatorConfig, PartyConfig, Peers, TlsFiles, load_config, to_toml

PEERS = Peers(coordinator="c", dealer="d", model_owner="m", data_owner="o")
TLS = TlsFiles(authority=Path("a.pem"), certificate=Path('odd "name".pem'), key=Path("k\\k.key"))


def test_round_trip(tmp_path: Path) -> None:
    config = PartyConfig(
        role="model-owner", id="m", coordinator="127.0.0.1:1", tls=TLS, peers=PEERS, student=Path("s"), deadline_s=2.5
    )
    path = tmp_path / "m.toml"
    path.write_text(to_toml(config))
    read = load_config(path, PartyConfig)
    assert read.student == tmp_path / "s", "paths are relative to the file"
    assert read.tls.certificate == tmp_path / TLS.certificate
    assert read.model_copy(update={"tls": TLS, "student": Path("s")}) == config


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('role = "spy"\nid = "x"\ncolour = "red"\nthreads = 0\n')
    with pytest.raises(UserInputError) as caught:
        load_config(path, PartyConfig)
    for key in ("role", "colour", "threads", "coordinator", "tls", "peers"):
        assert f"{key}: " in caught.value.what
    path.write_text("role = ")
    with pytest.raises(UserInputError, match=r"bad\.toml"):
        load_config(path, PartyConfig)


@pytest.mark.parametrize(
    ("role", "fields", "message"),
    [
        ("dealer", {"student": "s"}, "exactly the model owner"),
        ("model-owner", {}, "exactly the model owner"),
        ("data-owner", {"public_model": "p", "student": "s"}, "exactly the model owner"),
        ("dealer", {"public_model": "p"}, "exactly the data owner"),
        ("dealer", {"data_dir": "d"}, "only the data owner"),
    ],
)
def test_roles_hold_what_is_theirs_alone(role: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartyConfig(role=role, id="x", coordinator="h:1", tls=TLS, peers=PEERS, **fields)  # type: ignore[arg-type]


def test_addresses_and_the_coordinators_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(COORDINATOR.replace('"127.0.0.1:7000"', '"7000"').replace("batch_size = 4", "batch_size = 0"))
    with pytest.raises(UserInputError) as caught:
        load_config(path, CoordinatorConfig)
    assert "listen: " in caught.value.what
    assert "HOST:PORT" in caught.value.what
    assert "job.batch_size: " in caught.value.what
    path.write_text(COORDINATOR)
    config = load_config(path, CoordinatorConfig)
    assert config.tls.key == tmp_path / "certs/coordinator.key"
    assert (config.job.engine, config.job.split) == ("mpcformer", "eval")


COORDINATOR = """
listen = "127.0.0.1:7000"

[tls]
authority = "certs/authority.pem"
certificate = "certs/coordinator.pem"
key = "certs/coordinator.key"

[parties]
dealer = "dealer"
model_owner = "clinic"
data_owner = "patient"

[job]
task = "sst2"
batch_size = 4
"""
