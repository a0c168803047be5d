"""The command `mpcformer infer`."""


def infer() -> None:
    """Run a student privately (not there yet)."""
