"""Moves a whole hive from one store to another: copied while it is served, compared whole, then taken over."""
