"""What each of the four parties does, and what they share in a session."""
