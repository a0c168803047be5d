"""What is fixed before a party starts: configuration, logs, metrics, public files, the threat model."""
