"""The event log: read by cursor, follow, wake the readers."""
