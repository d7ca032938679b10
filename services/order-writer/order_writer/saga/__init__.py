"""The rules of an order's life, and the reduction of a batch of decisions. Must not do I/O or read a clock."""
