"""What a server does with calls: their ends are noticed whenever they come."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from parties.wire.callers import at_end


def context(ended: bool, callbacks: list[Callable[[], None]]) -> Any:
    """Return as much of gRPC's context as `at_end` uses; after a call's end gRPC takes no callback any more."""

    def add_callback(callback: Callable[[], None]) -> bool:
        if not ended:
            callbacks.append(callback)
        return not ended

    return SimpleNamespace(add_callback=add_callback)


@pytest.mark.parametrize("ended", [False, True])
def test_the_end_of_a_call_is_noticed_once(ended: bool) -> None:
    callbacks: list[Callable[[], None]] = []
    seen: list[str] = []
    at_end(context(ended, callbacks), lambda: seen.append("end"))
    assert len(seen) == ended
    for callback in callbacks:
        callback()
    assert seen == ["end"]
