"""Messages, topics and codec: the only thing every part of Stampede agrees on. No I/O in here."""
