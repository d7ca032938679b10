"""Search for a history that breaks the inventory protocol: the shipped state machine, a small world, one seed."""
