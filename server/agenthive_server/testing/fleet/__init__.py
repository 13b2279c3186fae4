"""A whole fleet for proofs: replicas, workers, subscribers and callers, what is done to them, and what must hold."""
