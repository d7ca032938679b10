"""Chaos at the edge: tight limits, stock at its edge, keys that come back, and a Redis and gateways that die."""
