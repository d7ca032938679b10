"""Limits by client address at a real gateway: whom it believes about addresses, and how IPv6 counts."""

from pathlib import Path
from uuid import uuid4

import httpx

from tests.support.builders.gateway import GatewayProcess
from tests.support.processes.sale import Sale, order

LIMITS = "address:token_bucket:1/h"


def status(gateway: GatewayProcess, product_id: str, forwarded: str) -> int:
    """Of a new purchase of a new buyer with this X-Forwarded-For."""
    headers = {"X-User-Id": uuid4().hex, "Idempotency-Key": uuid4().hex, "X-Forwarded-For": forwarded}
    return httpx.post(f"{gateway.url}/v1/purchases", json=order(product_id), headers=headers).status_code


def test_an_address_is_told_by_our_proxy_only(sale: Sale, tmp_path: Path) -> None:
    """Behind a proxy of ours each client counts for itself, a /64 as one, and what a client claims means nothing."""
    tea, net = sale.product(50), f"2001:db8:{uuid4().hex[:4]}:{uuid4().hex[:4]}"
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_LIMITS=LIMITS, STAMPEDE_TRUSTED_PROXIES="127.0.0.0/8")
    try:
        gateway.await_ready()
        assert status(gateway, tea, f"{net}::1") == 202
        assert status(gateway, tea, f"{net}:ffff::2") == 429
        assert status(gateway, tea, f"198.51.100.77, {net}::3") == 429
        assert status(gateway, tea, f"{net[:-4]}{int(net[-4:], 16) ^ 1:04x}::1") == 202
    finally:
        assert gateway.close() == 0, gateway.said()


def test_without_proxies_of_ours_nobody_chooses_an_address(sale: Sale, tmp_path: Path) -> None:
    """Whatever is forwarded, the connection's address counts."""
    tea = sale.product(50)
    gateway = GatewayProcess(sale.stack, tmp_path, STAMPEDE_LIMITS=LIMITS)
    try:
        gateway.await_ready()
        status(gateway, tea, "198.51.100.1")
        assert status(gateway, tea, "198.51.100.2") == 429
    finally:
        assert gateway.close() == 0, gateway.said()
