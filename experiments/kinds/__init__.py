"""The kinds of experiment, one file each, and what they share."""

# Where trainings may run.
POOLS = ("local", "ray")
