"""From the two topics into Postgres, from the stored progress on. Must not call a payment provider."""
