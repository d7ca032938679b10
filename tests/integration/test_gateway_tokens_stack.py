"""A local stack that believes tokens, and the command that prints them."""

import subprocess
import sys

import httpx

from tests.support.sale import buy, listing
from tests.support.stack import LocalStack, stack


def printed(running: LocalStack, user: str, role: str = "") -> dict[str, str]:
    """The header with a token of `devstack token`."""
    command = [
        sys.executable,
        "-m",
        "devstack",
        "token",
        f"--dir={running.layout.root}",
        "--user",
        user,
        "--role",
        role,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"Authorization": f"Bearer {done.stdout.strip()}"}


def test_a_stack_with_tokens_is_used_with_printed_ones() -> None:
    """An operator lists by token, a buyer buys by token, X-User-Id is nobody; endpoints.json says so."""
    with stack({"STAMPEDE_AUTH": "jwt"}) as running:
        endpoints = running.endpoints
        assert endpoints.auth == "jwt"
        with httpx.Client(base_url=endpoints.admin, headers=printed(running, "op", "admin"), timeout=10) as operator:
            assert operator.post("/admin/v1/products", json=listing("lamp")).status_code == 201
        with httpx.Client(base_url=endpoints.gateway[0], headers=printed(running, "ann"), timeout=10) as ann:
            assert buy(ann, "lamp", wait=5).status_code == 201
        with httpx.Client(base_url=endpoints.gateway[0], headers={"X-User-Id": "ann"}, timeout=10) as nobody:
            assert buy(nobody, "lamp").status_code == 401
        assert httpx.get(f"{endpoints.admin}/admin/v1/orders", headers=printed(running, "ann")).status_code == 403
