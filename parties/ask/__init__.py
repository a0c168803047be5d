"""Asking: private answers for a person or a program, from sessions that the data owner orders itself."""
