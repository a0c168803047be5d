"""The configuration of a party or of the coordinator: a TOML file that is checked completely before anything starts."""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mpcformer.engines.registry import DEFAULT_ENGINE
from mpcformer.errors import UserInputError
from mpcformer.tasks import OwnData
from parties.settings.job import JobDescription

PROTOCOL_VERSION = 13
Role = Literal["dealer", "model-owner", "data-owner"]
Device = Literal["cpu", "cuda"]
# RFC 2544 reserves these addresses for tests of networks; routers of the internet do not forward them.
TEST_NETWORK = ipaddress.ip_network("198.18.0.0/15")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return value


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT can be reached from this machine only."""
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
        raise ValueError("an id is listed twice")
    return ids


# Strict models would take no text for a path.
File = Annotated[Path, Field(strict=False)]
# A certificate can name these.
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,253}$")]
# It may be part of an address, and stand in a path.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]
# Longer than a year is a mistake, and beyond what timers can count.
LONGEST_S = 366 * 86_400.0
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
Address = Annotated[str, AfterValidator(_address)]
LoopbackAddress = Annotated[str, AfterValidator(_loopback)]
# The default holds the corrections of one sentence of 128 tokens for a student of the size of bert-base.
PoolMib = Annotated[int, Field(ge=1, le=1 << 20)]
DEFAULT_POOL_MIB = 768
# If nearly all batches were audited, hardly any would be left to compute with.
AuditRate = Annotated[float, Field(ge=0, le=0.9)]
# docs/security.md says what the attacks need that the defaults keep at a distance.
Limit = Annotated[int, Field(ge=1)] | Literal["unlimited"]
# By day and in all; None allows any number.
Limits = tuple[int | None, int | None]
# For local runs, in which one user holds text and weights.
UNLIMITED: dict[str, Any] = {"max_sentences_per_day": "unlimited", "max_sentences": "unlimited"}
# The name of a student that stands in its owner's file without one, and how many may stand there.
ONLY_STUDENT, MOST_STUDENTS = "student", 64
Ids = Annotated[list[Id], Field(min_length=1), AfterValidator(_distinct)]
SomeIds = Annotated[list[Id], AfterValidator(_distinct)]


def _limits(*given: int | Literal["unlimited"] | None) -> Limits:
    """Return the limits by day and in all. Where nothing is said, nothing may be asked."""
    per_day, in_all = (None if limit == "unlimited" else limit or 0 for limit in given)
    return per_day, in_all


class Strict(BaseModel):
    """A model that treats unknown keys as errors, and takes no text or truth value for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TlsFiles(Strict):
    """The PEM files of a party: the authority that both sides trust, and the party's own certificate and key."""

    authority: File
    certificate: File
    key: File


class Plaintext(Strict):
    """Takes the place of TLS between processes of one machine: every caller is believed to be who it says it is.

    Args:
        id: the id that this party claims.
    """

    id: Id


Credentials = TlsFiles | Plaintext


class Insecure(Strict):
    """Settings for measurements and tests: allowed on the loopback interface only, and noted on every output.

    Args:
        plaintext: whether to do without TLS.
        fixed_seed: a number from which all keys follow; addresses of RFC 2544 (198.18.0.0/15) are allowed as well.
    """

    plaintext: bool = False
    fixed_seed: int | None = Field(default=None, ge=0, lt=1 << 63)


class PeerAddress(Strict):
    """A party that is called: the id in its certificate, and its address HOST:PORT."""

    id: Id
    address: Address


class ProgramEntry(Strict):
    """A program that the owners may run together: one table `[[programs]]` of an owner's file.

    Args:
        name: what both owners call it.
        file: its file on this owner's disk; if that has several programs, FILE:NAME.
        inputs: by their names, the files of this owner's own inputs.
        out: a folder, in which each run whose results this owner learns gets a folder of its own.
        limit_s: how long a run may take from the moment at which both owners are ready.
        counts_as: at the model owner, how many sentences of the data owner's budget a run counts as; the default is
            how many numbers the data owner learns from it, and at least one.
    """

    name: Id
    file: File
    inputs: dict[str, File] = {}
    out: File | None = None
    limit_s: Seconds = 3600.0
    counts_as: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None


class StudentEntry(Strict):
    """A student that a model owner serves under a name: one table `[[students]]` of its file.

    Args:
        name: what data owners ask for.
        path: the student's folder.
        may_ask: the ids of the data owners that may ask it; None stands for all of the file's `data_owners`.
        max_sentences_per_day, max_sentences, public_embeddings: None stands for the file's own.
    """

    name: Name
    path: File
    may_ask: SomeIds | None = None
    max_sentences_per_day: Limit | None = None
    max_sentences: Limit | None = None
    public_embeddings: bool | None = None

    @property
    def limits(self) -> Limits:
        """How many sentences each data owner may ask of it in a day and in all."""
        return _limits(self.max_sentences_per_day, self.max_sentences)

    def allows(self, data_owner: str) -> bool:
        """Return whether this data owner may ask it."""
        return self.may_ask is None or data_owner in self.may_ask


class ModelEntry(Strict):
    """A model that a data owner asks: one table `[[models]]` of its file.

    Args:
        name: its name at the model owner.
        public_model: the folder of its public files, written by `mpcformer export`.
    """

    name: Name
    public_model: File


Entry = TypeVar("Entry", ProgramEntry, StudentEntry, ModelEntry)


def _distinct_names(entries: list[Entry]) -> list[Entry]:
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the name {', '.join(twice)} is listed twice")
    return entries


Programs = Annotated[list[ProgramEntry], AfterValidator(_distinct_names)]
Students = Annotated[list[StudentEntry], Field(max_length=MOST_STUDENTS), AfterValidator(_distinct_names)]
Models = Annotated[list[ModelEntry], Field(max_length=MOST_STUDENTS), AfterValidator(_distinct_names)]


class Common(Strict):
    """The keys of every configuration.

    Args:
        id: the party's id, which its certificate names too.
        tls: the party's certificate.
        insecure: see `Insecure`.
        join_timeout_s: how long the party waits for the others at the start.
    """

    id: Id
    tls: TlsFiles | None = None
    insecure: Insecure | None = None
    join_timeout_s: Seconds = 15.0

    @property
    def credentials(self) -> Credentials:
        """The credentials with which this party proves who it is."""
        return self.tls or Plaintext(id=self.id)

    def addresses(self) -> list[str]:
        """Return every address in this configuration."""
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
    """The keys of every configuration but the coordinator's.

    Args:
        threads: the number of torch threads.
        device: the device on which the party multiplies matrices.
        deadline_s: how long a peer may send nothing in the middle of a computation.
        log: whether log lines are text for people or JSON objects.
        metrics: HOST:PORT on the loopback interface where Prometheus reads metrics; without it there are none.
    """

    threads: int = Field(default=1, ge=1, le=1024)
    device: Device = "cpu"
    deadline_s: Seconds = 300.0
    log: Literal["text", "json"] = "text"
    metrics: LoopbackAddress | None = None


class ServiceConfig(PartyCommon):
    """The keys of a party that serves session after session.

    Args:
        listen: HOST:PORT; with port 0 the operating system chooses a free one.
        coordinators: the ids of the coordinators that may order a session.
        may_order: the ids of the data owners that may order sessions of their own, without a coordinator.
        data_owners: the ids that may take part in a session as data owner.
        max_sessions: the number of sessions at the same time; further ones are refused.
        max_sessions_per_peer: the same, for one coordinator or one data owner.
        max_session_s: how long a session may take before it is ended.
        grace_s: how long sessions may continue after SIGTERM.
    """

    listen: Address = "127.0.0.1:0"
    coordinators: SomeIds = []
    may_order: SomeIds = []
    data_owners: Ids
    max_sessions: int = Field(default=4, ge=1, le=64)
    max_sessions_per_peer: int = Field(default=2, ge=1, le=64)
    max_session_s: Seconds = 86_400.0
    grace_s: float = Field(default=30.0, ge=0, le=LONGEST_S)

    @model_validator(mode="after")
    def _somebody_may_order(self) -> Self:
        if not self.coordinators and not self.may_order:
            raise ValueError("coordinators: somebody must be allowed to order sessions, here or in may_order")
        _check_one_role_each(self.id, self.coordinators, self.data_owners)
        if self.metrics is not None and self.metrics.rpartition(":")[2] == self.listen.rpartition(":")[2] != "0":
            raise ValueError(f"metrics: {self.metrics} has the port of listen, {self.listen}")
        strangers = sorted(set(self.may_order) - set(self.data_owners))
        if strangers:
            raise ValueError(f"may_order: {', '.join(strangers)} is not in data_owners")
        return self


class DealerConfig(ServiceConfig):
    """The configuration of the dealer.

    Args:
        evidence: a file that is sent to both owners with their seeds, such as an attestation of its machine. It is read
            anew for each session.
        model_owners: the ids that may take part in a session as model owner.
    """

    role: Literal["dealer"]
    model_owners: Ids
    evidence: Path | None = None

    @model_validator(mode="after")
    def _owners_are_two(self) -> Self:
        _check_one_role_each(self.id, self.model_owners, self.data_owners)
        _check_one_role_each(self.id, self.model_owners, self.coordinators)
        return self


class ModelOwnerConfig(ServiceConfig):
    """The configuration of the model owner.

    Args:
        student: the folder of the distilled student, if there is one alone. A model owner that only runs programs has
            none.
        students: several students by name, each with its own budget and permissions, see `StudentEntry`.
        programs: the programs that it runs with a data owner, see `ProgramEntry`.
        public_embeddings: whether a job may disclose the embedding tables to the data owner.
        max_batch_tokens: the limit for the number of sentences times the padded length of a batch.
        dealers: the ids of the dealers that it trusts for randomness.
        pool_mib: how much each session keeps of correlations that were dealt ahead, MiB; the smaller of both owners'
            numbers counts. A batch that does not fit is dealt in parts.
        audit_rate, check_dealer: as for the data owner.
        max_sentences_per_day: how many sentences each data owner may ask of a student in a day (UTC), or "unlimited".
        max_sentences: how many it may ask in all, or "unlimited".
        budget_file: where these are counted, across restarts; by default beside the configuration's file.
        max_idle_s: how long a data owner may ask and deal nothing before its session is ended, which makes room for
            others. It can open another one.
    """

    role: Literal["model-owner"]
    student: File | None = None
    students: Students = []
    programs: Programs = []
    public_embeddings: bool = False
    max_batch_tokens: int = Field(default=1 << 16, ge=1, le=1 << 31)
    dealers: Ids
    pool_mib: PoolMib = DEFAULT_POOL_MIB
    audit_rate: AuditRate = 0.0
    check_dealer: Annotated[list[str], Field(min_length=1)] | None = None
    max_sentences_per_day: Limit = 1000
    max_sentences: Limit = 20_000
    budget_file: File = Path("budget.json")
    max_idle_s: Seconds = 3600.0

    @model_validator(mode="after")
    def _has_something_to_serve(self) -> Self:
        if self.student is None and not self.students and not self.programs:
            raise ValueError("student: give the folder of a student, or students, or programs")
        if self.student is not None and self.students:
            raise ValueError("student, students: give one of the two; a table [[students]] has a name and a path")
        for entry in self.students:
            if strangers := sorted(set(entry.may_ask or []) - set(self.data_owners)):
                raise ValueError(f"students: {entry.name}: may_ask: {', '.join(strangers)} is not in data_owners")
        return self

    @property
    def limits(self) -> Limits:
        """How many sentences a data owner may ask in a day and in all, where nothing else is said."""
        return _limits(self.max_sentences_per_day, self.max_sentences)

    def shelf(self) -> list[StudentEntry]:
        """Return all students, each with all of its settings."""
        alone = [] if self.student is None else [StudentEntry(name=ONLY_STUDENT, path=self.student)]
        own = "max_sentences_per_day", "max_sentences", "public_embeddings"
        defaults = {name: getattr(self, name) for name in own}
        return [
            entry.model_copy(update={name: value for name, value in defaults.items() if getattr(entry, name) is None})
            for entry in alone or self.students
        ]


class Replica(Strict):
    """Another dealer and another model owner, which holds the same model, for sessions side by side."""

    dealer: PeerAddress
    model_owner: PeerAddress


class DataOwnerConfig(PartyCommon):
    """The configuration of the data owner, which calls others and listens nowhere.

    It takes part in a coordinator's evaluations, or orders sessions of its own (`mpcformer ask`), or both.

    Args:
        coordinator: the coordinator that gives it its job.
        dealer, model_owner: the services from which it orders sessions of its own.
        replicas: more of both, for several sessions side by side (`mpcformer ask --sessions`).
        model_owners: the ids of the model owners that it works with in a coordinator's jobs.
        dealers: the ids of the dealers that it trusts for randomness in a coordinator's jobs.
        public_model: a folder with config.json, ranges.json, student.json and the tokenizer, but no weights; a data
            owner that only runs programs has none.
        model: the model's name at the model owner; it is needed if this data owner may ask several there.
        models: several models by name in place of these two, see `ModelEntry`.
        programs: the programs that it runs with the model owner in sessions of its own, see `ProgramEntry`.
        data_dir: the folder of a task's data, as in `load_examples`.
        data: the file for a job on the data owner's own data (task own-data).
        digest_key: a secret file with which it keys the digest that the coordinator keeps for --resume. The default is
            tls.key; a run that began before that key was renewed cannot be resumed.
        pool_mib: as for the model owner.
        audit_rate: how many of the batches that are dealt ahead are dealt again, compared and dropped; the same number
            at both owners.
        check_dealer: a command that reads a dealer's evidence on its standard input, and ends with status 0 if the
            dealer may be used. Without it no evidence is asked for.
        engine: the engine of its own sessions.
        out: the folder to which it writes its answers to a coordinator's job, as a parquet file for each session.
        tell: what a coordinator learns of its jobs: all, that is, logits, labels and ids; or the scores alone.
    """

    role: Literal["data-owner"]
    coordinator: PeerAddress | None = None
    dealer: PeerAddress | None = None
    model_owner: PeerAddress | None = None
    replicas: list[Replica] = []
    model_owners: SomeIds = []
    dealers: SomeIds = []
    public_model: File | None = None
    model: Name | None = None
    models: Models = []
    programs: Programs = []
    data_dir: File | None = None
    data: OwnData | None = None
    digest_key: File | None = None
    pool_mib: PoolMib = DEFAULT_POOL_MIB
    audit_rate: AuditRate = 0.0
    check_dealer: Annotated[list[str], Field(min_length=1)] | None = None
    engine: str = DEFAULT_ENGINE
    out: File | None = None
    tell: Literal["all", "scores"] = "all"

    def folder_of_model(self) -> Path:
        """Return the folder of the student's public files.

        Raises:
            UserInputError: this data owner only runs programs, or it asks several models, see `picked`.
        """
        if self.models:
            return self.picked().folder_of_model()
        if self.public_model is None:
            raise UserInputError(
                f"public_model: {self.id}'s file names none, so there is no student to ask",
                "add the folder of its public files, or run a program: mpcformer run NAME --config FILE",
            )
        return self.public_model

    def picked(self, name: str | None = None) -> "DataOwnerConfig":
        """Return this configuration for one of its models.

        Args:
            name: the model's name; None stands for the only one.

        Raises:
            UserInputError: there is no such model, or there are several and none is named.
        """
        if not self.models:
            return self if name is None else self.model_copy(update={"model": name})
        known = {entry.name: entry for entry in self.models}
        if name is None and len(known) == 1:
            name = self.models[0].name
        if name not in known:
            what = f"{self.id}'s file names several" if name is None else f"{name!r} is not among models in the file"
            raise UserInputError(f"model: {what}", f"choose one of: {', '.join(known)}")
        return self.model_copy(update={"model": name, "public_model": known[name].public_model, "models": []})

    def at(self, replica: Replica) -> "DataOwnerConfig":
        """Return this configuration with a replica's dealer and model owner."""
        return self.model_copy(update={"dealer": replica.dealer, "model_owner": replica.model_owner, "replicas": []})

    @model_validator(mode="after")
    def _has_a_way_to_a_session(self) -> Self:
        if (self.dealer is None) != (self.model_owner is None):
            raise ValueError("dealer, model_owner: give both, or, for a coordinator's jobs alone, neither")
        if self.coordinator is None and self.dealer is None:
            raise ValueError("give coordinator, or dealer and model_owner")
        if self.models and (self.public_model is not None or self.model is not None):
            raise ValueError("models: it takes the place of model and public_model: give one of the two")
        if self.public_model is None and not self.models and not self.programs:
            raise ValueError("public_model: give the folder of a student's public files, or models, or programs")
        if self.coordinator is not None and not (self.model_owners and self.dealers):
            raise ValueError("model_owners, dealers: list whom it works with in the coordinator's jobs")
        if self.replicas and self.dealer is None:
            raise ValueError("replicas: give dealer and model_owner too, which are the first")
        for dealer, model_owner in (
            (self.dealer, self.model_owner),
            *((r.dealer, r.model_owner) for r in self.replicas),
        ):
            ids = [self.id, *(peer.id for peer in (dealer, model_owner) if peer is not None)]
            if len(set(ids)) != len(ids):
                raise ValueError(f"the ids {ids} are not distinct: one party in two roles would collude with itself")
        return self


class CoordinatorConfig(Common):
    """The configuration of the coordinator.

    Args:
        listen: HOST:PORT, which the data owner must be able to reach.
        dealer, model_owner: the services that the coordinator calls.
        data_owner: the id of the data owner that will join.
        job: what the parties shall compute.
    """

    id: Id = "coordinator"
    listen: Address
    dealer: PeerAddress
    model_owner: PeerAddress
    data_owner: Id
    job: JobDescription
    join_timeout_s: Seconds = 600.0

    @model_validator(mode="after")
    def _four_parties(self) -> Self:
        ids = [self.id, self.dealer.id, self.model_owner.id, self.data_owner]
        if len(set(ids)) != len(ids):
            raise ValueError(f"the four ids {ids} are not distinct: one party in two roles would collude with itself")
        return self


def _check_one_role_each(own_id: str, *roles: list[str]) -> None:
    """Refuse an id in two roles: that party would collude with itself."""
    seen = [own_id, *(each for ids in roles for each in ids)]
    twice = sorted({each for each in seen if seen.count(each) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} has two roles: one party in two roles would collude with itself")


Service = DealerConfig | ModelOwnerConfig
PartyConfig = Annotated[DealerConfig | ModelOwnerConfig | DataOwnerConfig, Field(discriminator="role")]
OwnerConfig = Annotated[ModelOwnerConfig | DataOwnerConfig, Field(discriminator="role")]
AnyConfig = DealerConfig | ModelOwnerConfig | DataOwnerConfig | CoordinatorConfig


def _is_test_network(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0]) in TEST_NETWORK
    except ValueError:
        return False
