"""What an older copy of the database means: the guard that stops, and the command that mends. Must not apply records."""
