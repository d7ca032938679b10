"""What ends an order without a record of the log: expired holds, cancelled products, pending commands."""
