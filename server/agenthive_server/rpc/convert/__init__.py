"""Protobuf ↔ kernel records, one module per noun; the only place that knows both."""
