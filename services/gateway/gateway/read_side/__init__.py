"""Products and purchases as the log and Postgres have them, kept in memory. Must not append anything."""
