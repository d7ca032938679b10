"""Buy from Stampede: retries with the same key, waits, typed answers."""

from stampede_client.answers import Price, Product, Purchase, Refused, Unreachable
from stampede_client.client import Client
from stampede_client.retries import Retries

__all__ = ["Client", "Price", "Product", "Purchase", "Refused", "Retries", "Unreachable"]
