"""Health, metrics and spans of this process. Must not change anything."""
