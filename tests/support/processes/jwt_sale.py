"""A gateway that believes tokens, beside the one of a sale: for whatever depends on who asks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.builders.gateway import GatewayProcess
from tests.support.builders.tokens import AUDIENCE, ISSUER, Issuer
from tests.support.faults.fuzz import WEBHOOK_SECRET
from tests.support.processes.sale import Sale


@contextlib.contextmanager
def with_tokens(sale: Sale, folder: Path, **env: str) -> Iterator[tuple[GatewayProcess, Issuer]]:
    """One more gateway on the same components, and who signs for it; limits are out of the way."""
    issuer, key = Issuer("HS256"), folder / "key"
    key.write_text(issuer.key)
    settings = {
        "STAMPEDE_AUTH": "jwt",
        "STAMPEDE_JWT_ALGORITHM": "HS256",
        "STAMPEDE_JWT_ISSUER": ISSUER,
        "STAMPEDE_JWT_AUDIENCE": AUDIENCE,
        "STAMPEDE_JWT_KEY_FILE": str(key),
        "STAMPEDE_LIMITS": "user:token_bucket:100000/s",
        "STAMPEDE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    gateway = GatewayProcess(sale.stack, folder, **(settings | env))
    try:
        gateway.await_ready()
        yield gateway, issuer
    finally:
        assert gateway.close() == 0, gateway.said()
