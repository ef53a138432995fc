"""The durable memory of the control plane: SQLite by default, PostgreSQL by URL, the same behaviour on both."""
