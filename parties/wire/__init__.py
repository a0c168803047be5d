"""The connections between parties: certificates, callers, channels, servers and frames."""
