"""The command `mpcformer demo`."""


def demo() -> None:
    """Teacher, student, private inference (not there yet)."""
