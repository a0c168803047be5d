"""The data owner's pool of batches that were dealt ahead, by shape, and the thread that fills it.

A batch in the pool costs its online part alone. The pool is bounded in bytes, each of its batches is used once, and it
ends with the session.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence

import torch

from mpcformer.engines.base import BatchShape
from mpcformer.errors import MPCFormerError, UserInputError
from parties.session.owner_session import Dealt

# How long it pauses before a part of a batch while somebody asks. Meanwhile the model owner waits, and ends the session
# if that takes longer than its deadline_s.
MAX_PAUSE_S = 30.0


class Pool:
    """Batches that wait for their texts.

    Args:
        deal: does the offline part of a batch; `pause` is called before each segment, and `begun` with the batch as
            soon as its computation may begin.
        forget: drops a batch, given its number in the order of dealing, at both owners.
        size_of: the bytes that a batch keeps until its use.
        limit_bytes: the most bytes that wait here.
        on_failure: called with the error if dealing fails.
        threads: the number of torch threads that deal.
    """

    def __init__(
        self,
        *,
        deal: Callable[[BatchShape, Callable[[], None], Callable[[Dealt], None]], None],
        forget: Callable[[int], None],
        size_of: Callable[[BatchShape], int],
        limit_bytes: int,
        on_failure: Callable[[BaseException], None],
        threads: int = 1,
    ) -> None:
        self._deal, self._forget, self._size_of, self._on_failure = deal, forget, size_of, on_failure
        self.limit_bytes, self._threads = limit_bytes, threads
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Dealt]] = deque()
        self._urgent: deque[BatchShape] = deque()
        self._coming: deque[BatchShape] = deque()
        # How many batches of a shape to hold while nobody asks.
        self._stock: Counter[BatchShape] = Counter()
        self._n_dealt = 0
        self._busy: BatchShape | None = None
        # The batch that is being dealt, from when its computation may begin, unless somebody has taken it; its number
        # stays until it is dealt.
        self._current: tuple[int, Dealt] | None = None
        self._current_number: int | None = None
        self._asking = self._awaited = 0
        self._sealed = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="pool", daemon=True)
        self._thread.start()

    @property
    def error(self) -> BaseException | None:
        """Why dealing failed, if it did."""
        return self._error

    def fits(self, shape: BatchShape) -> bool:
        """Return whether a batch of this shape can wait here at all."""
        return self._size_of(shape) <= self.limit_bytes

    def coming(self, shapes: Sequence[BatchShape]) -> None:
        """Deal batches for what will be asked next, in this order and as far as there is room.

        What was said to come before, and has not been dealt, is forgotten. A batch that waits is not dealt again.
        """
        # A plan may take seconds, in which nobody shall wait for the lock.
        fitting = [shape for shape in shapes if self.fits(shape)]
        with self._changed:
            current = [self._current] if self._current is not None else []
            held = Counter(dealt.shape for _, dealt in [*self._waiting, *current])
            self._coming.clear()
            for shape in fitting:
                if held[shape]:
                    held[shape] -= 1
                else:
                    self._coming.append(shape)
            self._changed.notify_all()

    def stock_only(self, shapes: Sequence[BatchShape], n: int) -> None:
        """Hold `n` batches of each of these shapes while nobody asks, as far as there is room, and none of others."""
        stock = Counter({shape: n for shape in shapes if self.fits(shape)})
        with self._changed:
            self._stock = stock
            self._changed.notify_all()

    def has(self, shape: BatchShape) -> bool:
        """Return whether a batch of this shape waits here."""
        with self._changed:
            return any(dealt.shape == shape for _, dealt in self._waiting)

    def fitting(self, shape: BatchShape) -> BatchShape:
        """Return the shape that answers a question of this shape soonest: its own, or a longer one that waits already.

        A batch that is being dealt counts as waiting, because no other can be dealt before it. One that is more than
        twice as long is left alone: computing it would take longer than dealing the right one saves.
        """
        with self._changed:
            waiting = [dealt.shape for _, dealt in self._waiting]
            waiting += [self._busy] if self._busy is not None and not self._is_taken() else []
        lengths = range(shape.seq_len, 2 * shape.seq_len + 1)
        fits = [each for each in waiting if each.batch_size == shape.batch_size and each.seq_len in lengths]
        return min(fits, key=lambda each: each.seq_len, default=shape)

    def can_serve(self, shape: BatchShape) -> bool:
        """Return whether a batch of this shape waits or can still be dealt."""
        return not self._sealed or self.has(shape)

    def used_up(self, shape: BatchShape) -> UserInputError:
        """Return the error for a shape of which no batch waits after the dealer has left."""
        with self._changed:
            held = Counter(f"{dealt.shape.batch_size} x {dealt.shape.seq_len}" for _, dealt in self._waiting)
        left = ", ".join(f"{n} of {name}" for name, n in held.items())
        return UserInputError(
            f"deal_ahead: the dealer has left, and no batch of {shape.batch_size} x {shape.seq_len} tokens waits; what"
            f" waits: {left or 'nothing'}",
            "open another session, with a larger deal_ahead",
        )

    def take(self, shape: BatchShape) -> tuple[int, Dealt, bool]:
        """Take a batch, which is dealt first if none waits.

        A batch that is being dealt is taken as soon as its computation may begin.

        Returns:
            Its number, the batch, and whether all of it was waiting.

        Raises:
            UserInputError: no batch of this shape waits, and the dealer has left.
        """
        with self._changed:
            found = self._pop(shape)
            ready = found is not None and found[1].is_whole
            if found is None and self._sealed:
                raise self.used_up(shape)
            if found is None:
                if shape in self._coming:
                    self._coming.remove(shape)
                    self._urgent.append(shape)
                elif self._busy != shape or self._is_taken():
                    self._urgent.append(shape)
                self._changed.notify_all()
            is_waiting = found is None
            self._awaited += is_waiting
            try:
                while found is None:
                    self._raise()
                    self._changed.wait(0.5)
                    found = self._pop(shape)
            finally:
                self._awaited -= is_waiting
            self._changed.notify_all()
        return *found, ready

    def put_back(self, number: int, dealt: Dealt) -> None:
        """Take back a batch that was not used after all."""
        with self._changed:
            if number == self._current_number:
                self._current = number, dealt
            else:
                self._waiting.appendleft((number, dealt))
            self._changed.notify_all()

    def deal_and_seal(self, shapes: Sequence[BatchShape]) -> None:
        """Deal a batch for each of these shapes, wait until that is done, and deal nothing more.

        Raises:
            UserInputError: so many do not fit into the pool.
        """
        needed = sum(map(self._size_of, shapes))
        if needed > self.limit_bytes:
            raise UserInputError(
                f"deal_ahead: {len(shapes)} batches need {needed / 2**20:.0f} MiB, the pool has"
                f" {self.limit_bytes / 2**20:.0f} MiB",
                "raise pool_mib at both owners, or deal fewer or shorter batches ahead",
            )
        self.coming(shapes)
        with self._changed:
            while self._coming or self._busy is not None:
                self._raise()
                self._changed.wait(0.5)
            self._sealed = True

    def asking(self) -> "Asking":
        """Return a block during which no batch is dealt for the stock alone."""
        return Asking(self)

    def alone(self, work: Callable[[], None]) -> None:
        """Do some work while nothing is dealt."""
        with self._changed:
            while self._busy is not None:
                self._raise()
                self._changed.wait(0.5)
            self._raise()
            self._busy = BatchShape(0, 0)
        try:
            work()
        finally:
            with self._changed:
                self._busy = None
                self._changed.notify_all()

    def close(self) -> None:
        """Deal nothing more. The batch that is being dealt is finished first."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def drop(self) -> None:
        """Deal nothing more, without waiting."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise MPCFormerError("the session has ended", "open another one")

    def _pop(self, shape: BatchShape) -> tuple[int, Dealt] | None:
        for item in self._waiting:
            if item[1].shape == shape:
                self._waiting.remove(item)
                return item
        current = self._current
        if current is None or current[1].shape != shape:
            return None
        self._current = None
        return current

    def _is_taken(self) -> bool:
        """Return whether somebody has taken the batch that is being dealt; called with the lock held."""
        return self._current_number is not None and self._current is None

    def _n_bytes(self) -> int:
        return sum(dealt.n_bytes for _, dealt in self._waiting)

    def _next(self) -> tuple[BatchShape, bool] | None:
        """Return the shape to deal next, and whether somebody waits for it or will; None if there is nothing to do."""
        if self._sealed or self._busy is not None:
            return None
        if self._urgent:
            return self._urgent.popleft(), True
        if self._coming and self._has_room(self._coming[0]):
            return self._coming.popleft(), True
        if not self._coming and not self._asking:
            held = Counter(dealt.shape for _, dealt in self._waiting)
            for shape, n in self._stock.items():
                if held[shape] < n and self._has_room(shape):
                    return shape, False
        return None

    def _has_room(self, shape: BatchShape) -> bool:
        return self._n_bytes() + self._size_of(shape) <= self.limit_bytes

    def _fill(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while True:
                with self._changed:
                    while (found := self._next()) is None and not self._ended:
                        self._changed.wait(1.0)
                    if self._ended or found is None:
                        return
                    shape, is_wanted = found
                    self._busy = shape
                    while not self._has_room(shape) and self._waiting:
                        number, _ = self._waiting.popleft()
                        self._forget(number)
                self._deal(shape, (lambda: None) if is_wanted else self._yield, self._begun)
                with self._changed:
                    if self._current is not None:
                        self._waiting.append(self._current)
                    self._current = self._current_number = self._busy = None
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._current = self._current_number = self._busy = None
                self._changed.notify_all()
            self._on_failure(error)

    def _begun(self, dealt: Dealt) -> None:
        with self._changed:
            self._current, self._current_number = (self._n_dealt, dealt), self._n_dealt
            self._n_dealt += 1
            self._changed.notify_all()

    def _yield(self) -> None:
        """Wait a limited time while somebody asks, unless that somebody waits for the pool or for this very batch."""

        def needless() -> bool:
            return bool(not self._asking or self._urgent or self._awaited or self._is_taken() or self._ended)

        with self._changed:
            self._changed.wait_for(needless, MAX_PAUSE_S)


class Asking:
    """A block during which somebody asks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        with self._pool._changed:
            self._pool._asking += 1

    def __exit__(self, *_: object) -> None:
        with self._pool._changed:
            self._pool._asking -= 1
            self._pool._changed.notify_all()
