"""The settings that a party has before it starts: configuration, logs, metrics, public files, the threat model."""
