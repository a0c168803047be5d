"""A session that the data owner orders itself, from dealer and model owner, and in which it asks batch after batch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from mpcformer.engines.base import BatchInputs, BatchShape, PublicModel
from mpcformer.errors import MPCFormerError, PartyError
from parties.session.data_side import Asked, BudgetError, DataSide
from parties.session.failure import as_known
from parties.session.own_session import OwnSession
from parties.settings.config import DataOwnerConfig
from parties.settings.job import JobDescription

Value = TypeVar("Value")
# The task of a session in which a data owner asks what it likes.
TASK = "ask"


class AskingSession:
    """One session, from its order to its end. One batch is asked at a time.

    Args:
        config: the data owner's, which names dealer and model owner.
        public: what is public of the model.
        student: hex SHA-256 of the weights, from the public files.
        largest: the most texts in a batch.

    Raises:
        MPCFormerError: a party does not answer, refuses, or disagrees; the error names it.
    """

    def __init__(self, config: DataOwnerConfig, public: PublicModel, student: str, *, largest: int) -> None:
        job = JobDescription(
            task=TASK,
            split="",
            batch_size=largest,
            engine=config.engine,
            embeddings=public.embeddings,
            model=config.model or "",
        )
        self._config, self._threads = config, config.threads
        self._own = OwnSession(config, job)
        self._membership, self._orderer = self._own.membership, self._own.orderer
        self._side = self._guarded(lambda: self._open(public, student))

    def _open(self, public: PublicModel, student: str) -> DataSide:
        return DataSide(self._config, self._own.job(), self._membership, public, student)

    def _guarded(self, work: Callable[[], Value]) -> Value:
        """Do some work of the session; if it fails, end the session and raise the first cause.

        Batches of a busy machine must not be slowed down by threads that wait for each other, so the work is done by
        as many threads as the configuration says.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return work()
        except BudgetError:
            raise
        except Exception as error:
            raise self._own.failed(as_known(error, self._config.id)) from None
        except BaseException:
            self._own.failed(PartyError(self._config.id, "it was interrupted"))
            raise
        finally:
            torch.set_num_threads(before)

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be asked any more."""
        failed = self._membership.error is not None or self._side.pool.error is not None
        return failed or not self._own.is_alive

    def coming(self, shapes: Sequence[BatchShape]) -> None:
        """Say what will be asked next, so that it is dealt ahead."""
        self._side.coming(shapes)

    def stock(self, shapes: Sequence[BatchShape], n: int) -> None:
        """Hold `n` batches of each of these shapes, and of no other, while nobody asks."""
        self._side.stock_only(shapes, n)

    def fitting(self, shape: BatchShape) -> BatchShape:
        """Return the shape that answers a question of this shape soonest."""
        return self._side.pool.fitting(shape)

    def deal_and_leave(self, shapes: Sequence[BatchShape]) -> None:
        """Deal one batch of each of these shapes; then the dealer forgets its seeds and leaves the session.

        Raises:
            UserInputError: so many batches do not fit into the pool; the session goes on as it was.
        """
        self._side.deal_and_seal(shapes)
        self._guarded(self._orderer.let_dealer_leave)

    def ask(self, inputs: BatchInputs, *, seen: bool = False) -> Asked:
        """Compute one batch.

        Args:
            inputs: the batch.
            seen: whether to note what the other parties see of it.

        Raises:
            BudgetError: the model owner answers no more today; the session goes on.
            UserInputError: the dealer has left, and no batch of this shape waits; the session goes on.
            MPCFormerError: the session failed, and is over.
        """
        n_told = inputs.n_told or inputs.shape.batch_size
        if not self._side.pool.can_serve(inputs.shape):
            raise self._side.pool.used_up(inputs.shape)
        return self._guarded(lambda: self._side.ask(inputs, n_told, seen=seen))

    def close(self) -> None:
        """End the session; nothing happens if it has ended."""
        error = self._side.pool.error
        if not self.has_ended:
            with contextlib.suppress(MPCFormerError):
                self._guarded(self._end)
        elif error is not None and self._membership.error is None:
            self._own.failed(as_known(error, self._config.id))
        self._side.close()
        self._own.close()

    def forget(self) -> None:
        """End the session at once, because nobody can ask in it any more."""
        self._membership.abort(PartyError(self._config.id, "it left the session"))
        self._own.wait()
        self.close()

    def _end(self) -> None:
        self._side.end()
        self._side.session.report()
        self._membership.dismissed()
        self._membership.leave()
