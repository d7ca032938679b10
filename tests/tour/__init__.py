"""Follows one purchase through the code of the running services, and counts its stays."""
