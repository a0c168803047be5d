"""What the parties of a session do together: order it, agree on it, deal, compute, and find out who failed."""
