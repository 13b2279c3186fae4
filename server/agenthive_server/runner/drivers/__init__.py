"""The drivers: each starts and stops agents of one kind."""
