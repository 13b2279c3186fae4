"""First-party plugins: each sub-package is one, and can be switched on and off."""
