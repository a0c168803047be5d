"""The contents of an experiment's TOML file, checked as a whole."""

# The sizes of an experiment, as its TOML names them.
SCALES = ("smoke", "cpu", "full")
