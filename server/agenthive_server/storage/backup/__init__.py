"""Backups of the store: consistent sets, the archive between them, and a new hive made of both."""
