"""Planted bugs: broken builds of the real services, each of which the checker has to name."""
