"""The local stack: real Kafka, Postgres, Redis and the services as supervised processes, without containers or root.

It is a tool for development, demos and tests. No service imports it.
"""
