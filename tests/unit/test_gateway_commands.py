"""Commands on their way to the log: acknowledged, unknown, or refused before anything was sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.admission import command_producer
from gateway.admission.command_producer import Commands
from stampede_schemas.codec import decode_command
from stampede_schemas.identifiers import PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from stampede_schemas.topics import partition_of
from tests.support.builders.gateway import MemoryProducer

WISH = CancelRequested(request_id=RequestId("r1"), purchase_id=PurchaseId("97ee-1"), actor="ann")


@contextlib.asynccontextmanager
async def running(producer: Any) -> AsyncIterator[Commands]:
    """Commands with their loop."""
    found = Commands(producer)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()


async def test_a_command_is_in_the_log_when_it_was_acknowledged() -> None:
    """In the partition of its key, as it was asked for."""
    log = MemoryProducer()
    async with running(log) as batcher:
        assert await batcher.append(WISH, WISH.purchase_id) is None
    [(partition, value)] = log.records
    assert (partition, decode_command(value)) == (partition_of("97ee-1"), WISH)


async def test_what_was_not_acknowledged_is_unknown() -> None:
    """503, to be sent again: it is acted on once."""
    log = MemoryProducer()
    log.failing = True
    async with running(log) as batcher:
        refused = await batcher.append(WISH, WISH.purchase_id)
    assert refused is not None
    assert (refused.kind.slug, refused.extra, refused.kind.retryable) == (
        "outcome-unknown",
        {"outcome": "unknown"},
        True,
    )


async def test_only_so_many_are_on_their_way() -> None:
    """One more is refused at once, and not sent; who leaves makes room."""
    log = MemoryProducer()
    log.silent = True
    async with running(log) as batcher:
        waiting = [asyncio.create_task(batcher.append(WISH, "k")) for _ in range(command_producer.IN_FLIGHT_MAX)]
        await asyncio.sleep(0)
        refused = await batcher.append(WISH, "k")
        assert refused is not None
        assert refused.kind.slug == "overloaded"
        again = [await batcher.append(WISH, "k") for _ in range(50)]
        assert {one.retry_after_s for one in again if one is not None} == {1, 2, 3}, "they must not come back as one"
        assert len(log.records) == command_producer.IN_FLIGHT_MAX
        waiting.pop().cancel()
        await asyncio.sleep(0)
        more = asyncio.create_task(batcher.append(WISH, "k"))
        log.silent = False
        assert await asyncio.gather(*waiting, more) == [None] * command_producer.IN_FLIGHT_MAX
