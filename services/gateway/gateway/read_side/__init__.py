"""What the log and Postgres say of products and purchases, kept in memory. Must not append anything."""
