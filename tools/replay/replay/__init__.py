"""Reads a sale back from its log and judges it from outside. Writes nothing to the system it judges."""
