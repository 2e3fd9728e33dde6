"""Shared by all packages: errors, configuration, logs, storage, and processes with limits. Knows nothing about faces."""
