"""Messages for the log that a commit leaves, and the relay that sends them. Must not decide anything."""
