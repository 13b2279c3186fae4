"""Fakes, suites and a whole server in-process, shipped so that plugin authors can use them too."""
