"""Configurations are read back as they were written, report all wrong keys at once, and keep insecurity local."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mpcformer.errors import UserInputError
from parties.settings.config import (
    UNLIMITED,
    CoordinatorConfig,
    DataOwnerConfig,
    DealerConfig,
    Insecure,
    ModelEntry,
    ModelOwnerConfig,
    PeerAddress,
    TlsFiles,
    is_loopback,
)
from parties.settings.config_file import load_any, load_coordinator, load_party, to_toml

TLS = TlsFiles(authority=Path("a.pem"), certificate=Path('odd "name".pem'), key=Path("k\\k.key"))
SERVICE: dict[str, Any] = {"coordinators": ["c"], "data_owners": ["o", "p"]}


def test_round_trip(tmp_path: Path) -> None:
    config = ModelOwnerConfig(
        role="model-owner", id="m", tls=TLS, dealers=["d"], student=Path("s"), deadline_s=2.5, **SERVICE
    )
    path = tmp_path / "m.toml"
    path.write_text(to_toml(config))
    read = load_party(path)
    assert isinstance(read, ModelOwnerConfig)
    assert read.student == tmp_path / "s", "paths are relative to the file"
    assert read.tls is not None
    assert read.tls.certificate == tmp_path / TLS.certificate
    assert read.budget_file == tmp_path / "budget.json", "beside the file"
    assert read.limits == (1000, 20_000)
    changes = {"tls": TLS, "student": Path("s"), "budget_file": config.budget_file}
    assert read.model_copy(update=changes) == config


def test_a_budget_is_lifted_by_name(tmp_path: Path) -> None:
    config = ModelOwnerConfig(
        role="model-owner", id="m", tls=TLS, dealers=["d"], student=Path("s"), **SERVICE, **UNLIMITED
    )
    path = tmp_path / "m.toml"
    path.write_text(to_toml(config))
    read = load_party(path)
    assert isinstance(read, ModelOwnerConfig)
    assert read.limits == (None, None)
    path.write_text(to_toml(config).replace('max_sentences = "unlimited"', "max_sentences = 0"))
    with pytest.raises(UserInputError, match="max_sentences"):
        load_party(path)


STUDENTS = [{"name": "films", "path": Path("f")}, {"name": "news", "path": Path("n"), "may_ask": ["o"]}]


def shelf(students: list[dict[str, Any]], **more: Any) -> ModelOwnerConfig:
    return ModelOwnerConfig(
        **{"role": "model-owner", "id": "m", "tls": TLS, "dealers": ["d"], **SERVICE, "students": students, **more}
    )


def test_a_shelf_takes_what_it_does_not_say_from_the_file(tmp_path: Path) -> None:
    films, news = STUDENTS
    given = [films | {"max_sentences": "unlimited"}, news | {"max_sentences_per_day": 7, "public_embeddings": True}]
    path = tmp_path / "m.toml"
    path.write_text(to_toml(shelf(given, max_sentences=99)))
    read = load_party(path)
    assert isinstance(read, ModelOwnerConfig)
    first, second = read.shelf()
    assert (first.path, second.path) == (tmp_path / "f", tmp_path / "n"), "relative to the file"
    assert (first.limits, second.limits) == ((1000, None), (7, 99))
    assert (first.public_embeddings, second.public_embeddings) == (False, True)
    assert [first.allows("p"), second.allows("p"), second.allows("o")] == [True, False, True]
    assert read.students[0].limits == (0, None), "where nothing is said, nothing may be asked"
    alone = shelf([], student=Path("s")).shelf()
    assert [(entry.name, entry.limits) for entry in alone] == [("student", (1000, 20_000))]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"students": [STUDENTS[0], STUDENTS[0]]}, "the name films is listed twice"),
        ({"students": [{"name": "films"}]}, "path"),
        ({"students": [{"path": Path("f")}]}, "name"),
        ({"students": [{"name": "..", "path": Path("f")}]}, "name"),
        ({"students": [{"name": "a b", "path": Path("f")}]}, "name"),
        ({"students": [{"name": "a" * 101, "path": Path("f")}]}, "name"),
        ({"students": [STUDENTS[0] | {"may_ask": ["z"]}]}, "films: may_ask: z is not in data_owners"),
        ({"students": [STUDENTS[0] | {"may_ask": ["o", "o"]}]}, "listed twice"),
        ({"students": [STUDENTS[0] | {"max_sentences": 0}]}, "max_sentences"),
        ({"students": [STUDENTS[0] | {"student": "x"}]}, "student"),
        ({"students": STUDENTS, "student": Path("s")}, "student, students: give one of the two"),
        ({"students": []}, "give the folder of a student, or students, or programs"),
        ({"students": [{"name": f"s{i}", "path": Path("f")} for i in range(65)]}, "at most 64"),
    ],
)
def test_a_wrong_shelf_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        shelf(**keys)


def test_a_data_owner_names_its_models_in_one_way() -> None:
    peers = {name: PeerAddress(id=name, address="127.0.0.1:1") for name in ("dealer", "model_owner")}
    common: dict[str, Any] = {"role": "data-owner", "id": "o", "tls": TLS, **peers}
    entries = [ModelEntry(name=name, public_model=Path(name)) for name in ("films", "news")]
    several = DataOwnerConfig(**common, models=entries)
    assert several.picked("news").folder_of_model() == Path("news")
    assert several.picked("news").model == "news"
    with pytest.raises(UserInputError, match="model: o's file names several"):
        several.folder_of_model()
    only = DataOwnerConfig(**common, models=entries[:1])
    assert (only.picked().model, only.folder_of_model()) == ("films", Path("films"))
    plain = DataOwnerConfig(**common, public_model=Path("p"))
    assert (plain.picked().model, plain.picked("x").model, plain.picked("x").folder_of_model()) == (
        None,
        "x",
        Path("p"),
    )
    for more, message in (
        ({"models": entries, "public_model": Path("p")}, "give one of the two"),
        ({"models": entries, "model": "films"}, "give one of the two"),
        ({"models": [entries[0], entries[0]]}, "the name films is listed twice"),
        ({}, "give the folder of a student's public files, or models, or programs"),
    ):
        with pytest.raises(ValidationError, match=message):
            DataOwnerConfig(**common, **more)


def test_all_errors_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('role = "dealer"\nid = "x"\ncolour = "red"\nthreads = 0\nmetrics = "0.0.0.0:1"\nlisten = "7"\n')
    with pytest.raises(UserInputError) as caught:
        load_party(path)
    for key in ("colour", "threads", "metrics", "listen", "data_owners", "model_owners"):
        assert f"{key}: " in caught.value.what
    for text, message in (
        ('role = "spy"\n', "'dealer', 'model-owner', 'data-owner'"),
        ("id = 1\n", "role"),
        ("role = ", "bad.toml"),
    ):
        path.write_text(text)
        with pytest.raises(UserInputError, match=message):
            load_party(path)


def test_the_other_kind_of_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('id = "c"\n')
    with pytest.raises(UserInputError, match="role is missing, so this is not a party's file"):
        load_party(path)
    with pytest.raises(UserInputError, match="dealer: Field required"):
        load_coordinator(path)
    path.write_text('id = "c"\n[dealer]\naddress = 7\n')
    with pytest.raises(UserInputError, match=r"dealer\.address: "):
        load_coordinator(path)
    path.write_text('role = "dealer"\n')
    with pytest.raises(UserInputError, match="this is a party's file"):
        load_coordinator(path)


def test_roles_hold_what_is_theirs_alone() -> None:
    with pytest.raises(ValidationError, match="student"):
        DealerConfig(role="dealer", id="d", tls=TLS, model_owners=["m"], student=Path("s"), **SERVICE)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="an id is listed twice"):
        DealerConfig(role="dealer", id="d", tls=TLS, model_owners=["m", "m"], **SERVICE)


@pytest.mark.parametrize(
    ("insecure", "listen", "message"),
    [
        ({"plaintext": True}, "127.0.0.1:0", ""),
        ({"plaintext": True}, "[::1]:0", ""),
        ({"plaintext": True}, "localhost:0", ""),
        ({"plaintext": True}, "0.0.0.0:0", "insecure.plaintext: 0.0.0.0:0 is not on the loopback interface"),
        ({"plaintext": True}, "198.18.0.1:1", "insecure.plaintext"),
        ({"plaintext": True}, "localhost.evil.example:1", "insecure.plaintext"),
        ({"fixed_seed": 1}, "198.18.0.1:1", ""),
        ({"fixed_seed": 1}, "127.0.0.1:1", ""),
        ({"fixed_seed": 1}, "10.0.0.1:1", "insecure.fixed_seed: 10.0.0.1:1 is neither on the loopback interface"),
        ({"fixed_seed": 1}, "dealer.example:1", "insecure.fixed_seed"),
    ],
)
def test_insecure_is_refused_off_the_machine(insecure: dict[str, Any], listen: str, message: str) -> None:
    setting = Insecure(**insecure)

    def make() -> DealerConfig:
        tls = None if setting.plaintext else TLS
        return DealerConfig(
            role="dealer", id="d", listen=listen, tls=tls, insecure=setting, model_owners=["m"], **SERVICE
        )

    if message:
        with pytest.raises(ValidationError, match=message):
            make()
    else:
        assert make().insecure == setting


def test_no_certificate_is_not_an_oversight() -> None:
    with pytest.raises(ValidationError, match="tls: certificate files are needed"):
        DealerConfig(role="dealer", id="d", model_owners=["m"], **SERVICE)
    with pytest.raises(ValidationError, match="tls: "):
        DealerConfig(role="dealer", id="d", tls=TLS, insecure=Insecure(plaintext=True), model_owners=["m"], **SERVICE)


def test_loopback_is_an_address_not_a_prefix() -> None:
    assert not is_loopback("127.0.0.1.example:1")


def test_addresses_and_the_coordinators_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(COORDINATOR.replace('"127.0.0.1:7000"', '"7000"').replace("batch_size = 4", "batch_size = 0"))
    with pytest.raises(UserInputError) as caught:
        load_coordinator(path)
    assert "listen: " in caught.value.what
    assert "HOST:PORT" in caught.value.what
    assert "job.batch_size: " in caught.value.what
    path.write_text(COORDINATOR.replace('"patient"', '"clinic"'))
    with pytest.raises(UserInputError, match="are not distinct: one party in two roles would collude with itself"):
        load_coordinator(path)
    path.write_text(COORDINATOR)
    config = load_any(path)
    assert isinstance(config, CoordinatorConfig)
    assert config.tls is not None
    assert config.tls.key == tmp_path / "certs/coordinator.key"
    assert (config.job.engine, config.job.split) == ("lift", "eval")


COORDINATOR = """
listen = "127.0.0.1:7000"
data_owner = "patient"

[tls]
authority = "certs/authority.pem"
certificate = "certs/coordinator.pem"
key = "certs/coordinator.key"

[dealer]
id = "dealer"
address = "dealer.example:7001"

[model_owner]
id = "clinic"
address = "models.example:7002"

[job]
task = "sst2"
batch_size = 4
"""
