"""Test builds: the shipped services with some parts exchanged in their composition root, so that they die on demand."""
