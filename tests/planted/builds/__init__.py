"""Test builds: the shipped services with one part exchanged for a broken one. Nothing of it is ever shipped."""
