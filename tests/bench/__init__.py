"""Benchmarks: one figure a module, each a ratio to a bare echo server measured in the same run."""
