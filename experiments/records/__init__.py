"""Recorded results: how they are read, reused, compared with a new run, and saved."""
