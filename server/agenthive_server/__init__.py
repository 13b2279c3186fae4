"""The control plane: one gRPC server that starts agents, gives them work and tells what happens."""
