"""The gRPC edge: convert, call one kernel verb, convert back."""
