"""Replayable experiments on top of the library, the recipes and the parties."""
