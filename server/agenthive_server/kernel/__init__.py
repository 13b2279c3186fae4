"""The domain: agents, tasks, leases, events and their verbs, in plain Python."""
