"""The inventory: decides every request exactly once, and is the only part of Stampede that decides about stock."""
