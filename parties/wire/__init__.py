"""The connection between parties: certificates, channels, servers, frames."""
