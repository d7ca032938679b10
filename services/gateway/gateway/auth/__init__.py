"""Callers, their pseudonyms and purchase ids. Must not know the log, Postgres or the rules of a sale."""
