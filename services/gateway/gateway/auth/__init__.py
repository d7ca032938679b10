"""Who asks, and under which pseudonym and purchase id. Must not know the log, Postgres or the rules of a sale."""
