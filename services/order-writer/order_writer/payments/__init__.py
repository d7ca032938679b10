"""Calls to the payment provider, and their leases. Must not decide about orders."""
