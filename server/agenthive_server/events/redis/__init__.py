"""What replicas share over Redis: rings, output, and what is said of how Redis is. Losing it loses no event."""
