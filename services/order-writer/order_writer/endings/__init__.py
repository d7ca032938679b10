"""The ends of orders that no record of the log brings: expired holds, cancelled products, pending commands."""
