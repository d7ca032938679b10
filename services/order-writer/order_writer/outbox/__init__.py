"""What is told to the log after a commit, and the relay that sends it. Must not decide anything."""
