"""A process of its own that starts agents through drivers and speaks for them."""
