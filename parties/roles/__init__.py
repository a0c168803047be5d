"""The four parties at work, and what they share in a session."""
