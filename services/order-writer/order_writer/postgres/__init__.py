"""Postgres: the pool, what an outage is, the schema and its roles. Must not know orders."""
