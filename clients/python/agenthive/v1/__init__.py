"""Generated from protos/agenthive/v1 by `make gen`: edit the protos, never these files."""
