"""What becomes of an order: pure rules, and what a batch of decisions says. Must not do I/O or read a clock."""
