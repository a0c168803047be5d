"""The kinds of experiment, one file each, and what they share."""
