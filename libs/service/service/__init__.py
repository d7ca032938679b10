"""How every service starts, ends and says no. Must not know any service, the log, Postgres or Redis."""
