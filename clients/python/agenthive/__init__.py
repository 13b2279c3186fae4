"""Agent Hive: the client, the worker SDK and the generated stubs."""
