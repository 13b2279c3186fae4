"""Who may do what, and who did what: authentication, roles, join tokens, rate limits, audit trail, threats."""
