"""Asking the payment provider, and remembering that it was asked. Must not decide about orders."""
