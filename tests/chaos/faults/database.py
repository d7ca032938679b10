"""Postgres that locks a table, or is lost exactly at a COMMIT."""

import asyncio
import time
from functools import partial
from random import Random

import asyncpg

from tests.chaos.arena import LOOK_S, Arena
from tests.chaos.faults.fault import Fault
from tests.chaos.links import named
from tests.support.faults.proxy import POSTGRES_COMMIT, POSTGRES_COMMITTED, Way

LINK = named("order-writer", "postgres")
PASSES_S_MAX = 12.0
LETS_PASS_MAX = 8
WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'purchases'::regclass AND NOT granted"


def _locked(arena: Arena, _dice: Random, seconds: float) -> bool:
    arena.tell(f"purchases is locked for {seconds:.0f} s")
    waited = asyncio.run(_lock(arena.stack.postgres, seconds))
    arena.tell(f"up to {waited} others waited for the lock")
    return waited > 0


async def _lock(dsn: str, seconds: float) -> int:
    """Hold the table; how many waited for it at once, at most."""
    connection, waited = await asyncpg.connect(dsn, timeout=10), 0
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE purchases IN ACCESS EXCLUSIVE MODE")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                waited = max(waited, await connection.fetchval(WAITING))
                await asyncio.sleep(LOOK_S)
    finally:
        await connection.close()
    return waited


def _cut_at_commit(pattern: bytes, way: Way, arena: Arena, dice: Random, _seconds: float) -> bool:
    wire = arena.links[LINK]
    trap = wire.trap(pattern, way, delivered=False, lets_pass=dice.randrange(LETS_PASS_MAX))
    hit = trap.wait(PASSES_S_MAX)
    wire.heal()
    arena.tell(f"{LINK}: {'cut at a COMMIT' if hit else 'no COMMIT came by'} on its way {way.value}")
    return hit


FAULTS = {
    "purchases locked": Fault("LOCK TABLE purchases for 20 s", _locked, "postgres", (20.0, 20.0)),
    "COMMIT lost": Fault(
        "the connection is cut before Postgres has the COMMIT",
        partial(_cut_at_commit, POSTGRES_COMMIT, Way.TO_SERVER),
        LINK,
    ),
    "COMMIT unheard": Fault(
        "the connection is cut when Postgres has committed, before the writer hears it",
        partial(_cut_at_commit, POSTGRES_COMMITTED, Way.TO_CLIENT),
        LINK,
    ),
}
