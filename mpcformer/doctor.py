def doctor() -> None:
    """Say what is installed and what is missing, with the line that mends it."""
