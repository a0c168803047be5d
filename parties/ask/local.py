"""All parties on this machine: dealer and model owner as processes, the data owner in the calling one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mpcformer.engines.registry import DEFAULT_ENGINE, resolve
from mpcformer.errors import UserInputError
from mpcformer.modeling.folder import first_student, read_config, require_student
from parties.ask.models import load_asking
from parties.ask.options import AskOptions, checked_options
from parties.runs.local_services import LocalServices
from parties.settings.config import DEFAULT_POOL_MIB, DataOwnerConfig, Device
from parties.settings.public_files import export_public

if TYPE_CHECKING:
    from parties.ask.classifier import Classifier

# A model owner has no more places for all its callers.
MOST_SESSIONS = 64


def local(
    student: str | Path | None = None,
    *,
    max_length: int | None = None,
    batch_size: int = 16,
    ahead: int = 2,
    first: tuple[int, int] = (1, 32),
    deal_ahead: int | None = None,
    pool_mib: int = DEFAULT_POOL_MIB,
    lengths: Sequence[int] | None = None,
    engine: str = DEFAULT_ENGINE,
    threads: int = 1,
    device: str = "cpu",
    sessions: int = 1,
) -> "Classifier":
    """Start all parties on this machine, and return a classifier that asks them.

    Dealer and model owner are processes of their own; the data owner is the calling process. This shows the
    computation and its cost. It protects nothing from whoever can read this user's files and memory.

    Args:
        student: the folder of a distilled student; None stands for the small one that comes with the package, which
            tells whether a sentence about a film is negative or positive.
        max_length: the number of tokens to cut texts to; None refuses texts that exceed the model's positions.
        batch_size: the most texts that share every round.
        ahead: how many batches of the shapes asked for last are dealt while nobody asks.
        first: the shape (texts, tokens) that is dealt before anybody has asked.
        deal_ahead: the number of batches of the shape `first` to deal before the first text is read, after which the
            dealer forgets its seeds and leaves; None keeps the dealer.
        pool_mib: the most MiB of correlations that wait at the model owner.
        lengths: the lengths that texts are padded to; the default is 16, 32, 64, 128, 256, 512, as far as the model
            has positions.
        engine: lift or crypten.
        threads: the number of torch threads of each party.
        device: where the parties multiply matrices, cpu or cuda.
        sessions: how many sessions answer many texts side by side.

    Returns:
        A classifier, to be closed, or used in a `with` block.

    Raises:
        UserInputError: an argument is wrong; nothing was started.
        PartyError: a party did not start.

    Example:
        >>> with mpcformer.local("runs/demo/student") as classify:
        ...     classify("A quiet film that stays with you.")
        [{'label': 'positive', 'score': 0.97}]
    """
    folder = first_student() if student is None else Path(student)
    require_student(folder, read_config(folder))
    if threads < 1:
        raise UserInputError(f"threads: {threads} is below 1", "give a positive number")
    if device != "cpu":
        from mpcformer.ring import gemm

        gemm.check_device(device)
    options = checked_options(max_length, batch_size, ahead, first, deal_ahead, lengths)
    _check_sessions(sessions, deal_ahead)
    site = LocalParties(
        folder, engine=resolve(engine), threads=threads, device=device, pool_mib=pool_mib, sessions=sessions
    )
    try:
        return _asking([site.data_owner()] * sessions, options, site.close)
    except BaseException:
        site.close()
        raise


def connect(
    config: str | Path,
    *,
    model: str | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    ahead: int = 2,
    first: tuple[int, int] = (1, 32),
    deal_ahead: int | None = None,
    lengths: Sequence[int] | None = None,
    sessions: int = 1,
    patience_s: float | None = None,
) -> "Classifier":
    """Return a classifier that asks the dealer and the model owner of a deployment.

    Args:
        config: the data owner's TOML file, with `dealer` and `model_owner`. Where it names `replicas`, several sessions
            take turns between these and the first two.
        model: the name of the model to ask, as the model owner calls it; None stands for the only one.
        max_length, batch_size, ahead, first, deal_ahead, lengths, sessions: as for `local`.
        patience_s: for how many seconds a session that begins waits for another party at most; the default is
            `join_timeout_s` of the file.

    Raises:
        UserInputError: the file or an argument is wrong.
    """
    loaded = load_asking(config, patience_s).picked(model)
    options = checked_options(max_length, batch_size, ahead, first, deal_ahead, lengths)
    _check_sessions(sessions, deal_ahead)
    sites = [loaded, *(loaded.at(replica) for replica in loaded.replicas)]
    return _asking([sites[n % len(sites)] for n in range(sessions)], options)


def _check_sessions(sessions: int, deal_ahead: int | None) -> None:
    if not 1 <= sessions <= MOST_SESSIONS:
        raise UserInputError(f"sessions: {sessions} is outside 1..{MOST_SESSIONS}", "give a number from there")
    if sessions > 1 and deal_ahead is not None:
        raise UserInputError(
            f"sessions: {sessions} sessions with deal_ahead, which deals for one alone", "leave one of them out"
        )


def _asking(
    configs: Sequence[DataOwnerConfig], options: AskOptions, on_close: Callable[[], None] = lambda: None
) -> "Classifier":
    """Return what asks with a session for each of these configurations."""
    # This loads torch, while local parties do the same.
    from parties.ask.classifier import Classifier

    if len(configs) == 1:
        return Classifier(configs[0], options, on_close=on_close)
    from parties.ask.side_by_side import SideBySide

    found = SideBySide([Classifier(config, options) for config in configs], options.largest, on_close)
    return cast(Classifier, found)  # it has all that a classifier has


class LocalParties(LocalServices):
    """Dealer and model owner as services of this machine that answer questions.

    Args:
        student: the folder of the student.
        engine, threads, device, pool_mib, sessions: as for `local`.

    Raises:
        PartyError: a party did not start.
    """

    def __init__(
        self, student: Path, *, engine: str, threads: int, device: str, pool_mib: int, sessions: int = 1
    ) -> None:
        super().__init__()
        machine: dict[str, Any] = {"threads": threads, "device": cast(Device, device)}
        self._student, self._data_owner = student.resolve(), machine | {"pool_mib": pool_mib, "engine": engine}
        places = max(sessions, 2)
        self.start(
            services=machine | {"max_sessions": places, "max_sessions_per_peer": places},
            model_owner={"student": self._student, "pool_mib": pool_mib},
        )

    def data_owner(self) -> DataOwnerConfig:
        """Return the data owner's configuration, once dealer and model owner listen."""
        public = export_public(self._student, self.folder / "public")
        return self.data_owner_with(**self._data_owner, public_model=public)
