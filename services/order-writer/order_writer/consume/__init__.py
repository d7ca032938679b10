"""From the two topics into Postgres, from wherever the stored progress says. Must not call a payment provider."""
