"""Whether a purchase goes into the log, and how it gets there. Must not know HTTP routes."""
