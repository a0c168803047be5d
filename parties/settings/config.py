"""The configuration of a party, or of the coordinator: a TOML file, checked whole before anything starts."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mpcformer.engines.registry import DEFAULT_ENGINE, resolve
from mpcformer.errors import UserInputError

PROTOCOL_VERSION = 2
Role = Literal["dealer", "model-owner", "data-owner"]
Device = Literal["cpu", "cuda"]
# RFC 2544 keeps these for tests of networks: no router of the internet passes them on.
TEST_NETWORK = ipaddress.ip_network("198.18.0.0/15")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return value


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT cannot be reached from another machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loopback(value: str) -> str:
    if not is_loopback(_address(value)):
        raise ValueError(f"{value!r} is not on the loopback interface, 127.0.0.1:PORT")
    return value


def _distinct(ids: list[str]) -> list[str]:
    if len(set(ids)) != len(ids):
        raise ValueError("an id stands twice")
    return ids


Address = Annotated[str, AfterValidator(_address)]
LoopbackAddress = Annotated[str, AfterValidator(_loopback)]
Ids = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class TlsFiles(Strict):
    """PEM files: the authority both sides trust, and this party's certificate and key."""

    authority: Path
    certificate: Path
    key: Path


class Plaintext(Strict):
    """Instead of TLS, between processes of one machine alone: whoever connects is who it says it is.

    Args:
        id: who this party says it is.
    """

    id: str


Credentials = TlsFiles | Plaintext


class Insecure(Strict):
    """What is for measurements and tests, is refused off the loopback interface, and stamps INSECURE on every output.

    Args:
        plaintext: no TLS.
        fixed_seed: all keys follow from this number; the networks of RFC 2544 (198.18.0.0/15) are allowed too.
    """

    plaintext: bool = False
    fixed_seed: int | None = Field(default=None, ge=0)


class PeerAddress(Strict):
    """A party that is called: the name in its certificate, and HOST:PORT."""

    id: str
    address: Address


class Common(Strict):
    """What every configuration has.

    Args:
        id: the party's name; its certificate's too.
        tls: its certificate.
        insecure: see `Insecure`.
        join_timeout_s: how long it waits for the others at the start.
    """

    id: str
    tls: TlsFiles | None = None
    insecure: Insecure | None = None
    join_timeout_s: float = Field(default=15.0, gt=0)

    @property
    def credentials(self) -> Credentials:
        """How this party shows who it is."""
        return self.tls or Plaintext(id=self.id)

    def addresses(self) -> list[str]:
        """Every address in this configuration."""
        fields = (getattr(self, name, None) for name in ("listen", "coordinator", "dealer", "model_owner"))
        return [value.address if isinstance(value, PeerAddress) else value for value in fields if value is not None]

    @model_validator(mode="after")
    def _secure_or_local(self) -> Self:
        insecure = self.insecure or Insecure()
        if (self.tls is None) != insecure.plaintext:
            raise ValueError("tls: certificate files are needed, or, on one machine, insecure.plaintext = true")
        for address in self.addresses():
            if insecure.plaintext and not is_loopback(address):
                raise ValueError(f"insecure.plaintext: {address} is not on the loopback interface")
            if insecure.fixed_seed is not None and not is_loopback(address) and not _is_test_network(address):
                raise ValueError(
                    f"insecure.fixed_seed: {address} is neither on the loopback interface nor {TEST_NETWORK}"
                )
        return self


class PartyCommon(Common):
    """What every party's configuration has.

    Args:
        threads: torch threads.
        device: where it multiplies matrices.
        deadline_s: how long a peer may stay silent in the middle of a computation.
        log: lines for people, or JSON objects.
        metrics: HOST:PORT on the loopback interface for Prometheus; none if left out.
    """

    threads: int = Field(default=1, ge=1)
    device: Device = "cpu"
    deadline_s: float = Field(default=300.0, gt=0)
    log: Literal["text", "json"] = "text"
    metrics: LoopbackAddress | None = None


class ServiceConfig(PartyCommon):
    """A party that serves session after session.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        coordinators: ids that may order a session.
        data_owners: ids that may take part in one.
        max_sessions: at once; more are told to come back later.
        max_sessions_per_peer: at once, of one coordinator or one data owner.
        max_session_s: a session that takes longer is ended.
        grace_s: how long sessions may go on after SIGTERM.
    """

    listen: Address = "127.0.0.1:0"
    coordinators: Ids
    data_owners: Ids
    max_sessions: int = Field(default=4, ge=1, le=64)
    max_sessions_per_peer: int = Field(default=2, ge=1, le=64)
    max_session_s: float = Field(default=86_400.0, gt=0)
    grace_s: float = Field(default=30.0, ge=0)


class DealerConfig(ServiceConfig):
    """The dealer's own file.

    Args:
        model_owners: ids that may take part in a session.
    """

    role: Literal["dealer"]
    model_owners: Ids


class ModelOwnerConfig(ServiceConfig):
    """The model owner's own file.

    Args:
        student: the distilled student's folder.
        public_embeddings: may the embedding tables be told to the data owner.
        max_batch_tokens: sentences times padded length of the largest batch that it takes.
        dealers: ids of the dealers it trusts for randomness.
    """

    role: Literal["model-owner"]
    student: Path
    public_embeddings: bool = False
    max_batch_tokens: int = Field(default=1 << 16, ge=1)
    dealers: Ids


class DataOwnerConfig(PartyCommon):
    """The data owner's own file. It listens nowhere.

    Args:
        coordinator: where it gets its job.
        model_owners: ids that it works with.
        dealers: ids of the dealers it trusts for randomness.
        public_model: folder with config.json, ranges.json, student.json and the tokenizer; no weights.
        data_dir: as in `load_examples`.
        digest_key: a file, for nobody else, that keys what the coordinator keeps for --resume; default: tls.key, and
            then a run begun before a renewal cannot go on after it.
    """

    role: Literal["data-owner"]
    coordinator: PeerAddress
    model_owners: Ids
    dealers: Ids
    public_model: Path
    data_dir: Path | None = None
    digest_key: Path | None = None


def _engine(name: str) -> str:
    try:
        return resolve(name)
    except UserInputError as error:
        raise ValueError(f"{error.what}; {error.remedy}") from None


EngineName = Annotated[str, AfterValidator(_engine)]


class JobConfig(Strict):
    """What the parties shall compute; as the options of `mpcformer infer`."""

    task: str
    split: str = "eval"
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_length: int | None = Field(default=None, ge=8)
    engine: EngineName = DEFAULT_ENGINE
    embeddings: Literal["private_table", "public_table"] = "private_table"


class CoordinatorConfig(Common):
    """The coordinator's own file.

    Args:
        listen: HOST:PORT that the data owner reaches.
        dealer, model_owner: where they are served.
        data_owner: the id of the one that will come.
        job: what to compute.
    """

    id: str = "coordinator"
    listen: Address
    dealer: PeerAddress
    model_owner: PeerAddress
    data_owner: str
    job: JobConfig
    join_timeout_s: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _four_parties(self) -> Self:
        ids = [self.id, self.dealer.id, self.model_owner.id, self.data_owner]
        if len(set(ids)) != len(ids):
            raise ValueError(f"the four ids {ids} are not four: parties that are one collude")
        return self


Service = DealerConfig | ModelOwnerConfig
PartyConfig = Annotated[DealerConfig | ModelOwnerConfig | DataOwnerConfig, Field(discriminator="role")]
AnyConfig = DealerConfig | ModelOwnerConfig | DataOwnerConfig | CoordinatorConfig


def _is_test_network(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0]) in TEST_NETWORK
    except ValueError:
        return False
