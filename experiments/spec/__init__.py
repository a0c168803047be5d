"""The contents of an experiment's TOML file, checked as a whole."""
