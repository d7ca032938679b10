"""The arbiter of "sold or given back": every outcome of the log as a row in Postgres, and the saga that ends it."""
