"""Who may do what: tokens and roles, policies of methods, the audit log, TLS, limits, secrets by reference."""
