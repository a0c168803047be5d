"""The kinds of experiment, with one module for each kind, and the modules that they share."""
