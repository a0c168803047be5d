"""Show on the coordinator's terminal how far a job is: batches, segments of the model, rounds, bytes, time left."""

from types import TracebackType

from mpcformer.console import progress
from parties.stubs import parties_pb2 as pb


class Live:
    """A progress bar. It is visible inside a `with` block."""

    def __init__(self) -> None:
        self._bar = progress(description_width=0)
        self._task = self._bar.add_task("batches", total=None, info="waiting for the parties")

    def show(self, now: pb.Progress) -> None:
        """Show the latest progress that the data owner reported."""
        done = now.batch + (now.segment == now.n_segments)
        info = f"part {now.segment}/{now.n_segments}, {now.rounds} rounds, {now.bytes / 2**20:.0f} MiB in"
        self._bar.update(self._task, completed=done, total=now.n_batches, info=info)

    def __enter__(self) -> "Live":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
