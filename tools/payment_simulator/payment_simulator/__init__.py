"""Play money for demonstrations and tests: a payment provider that is installed beside the order-writer."""
