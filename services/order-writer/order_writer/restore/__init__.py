"""When the database is an older copy: the guard that stops, and the command that mends. Must not apply records."""
