"""The `hive` command line: what a person asks the control plane from a terminal."""
