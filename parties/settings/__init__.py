"""What a party is told before it starts: configuration, logs, metrics, public files, the threat model."""
