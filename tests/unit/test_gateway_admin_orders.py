"""The place of a product's cancellation: queried after the operator asked, and nothing is sent where it is unknown."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from fastapi import Depends, FastAPI, Request

from gateway.admission.command_producer import Commands
from gateway.api.admin_orders import AdminOrders
from gateway.api.errors import add_handlers
from gateway.auth.ids import IdentityKey
from gateway.auth.operators import KEY_ACTOR, Access
from gateway.read_side.follower import Waiters
from gateway.read_side.freshness import Freshness
from gateway.read_side.lookup import Lookup
from stampede_schemas.codec import decode_command
from stampede_schemas.order_commands import CancelProductRequested
from stampede_schemas.topics import partition_of
from tests.support.builders.gateway import IDENTITY_KEY, LAMP, EndOfRequests, MemoryProducer, folded, listed

PATH = f"/admin/v1/products/{LAMP}/cancel-orders"
KEY = IdentityKey(IDENTITY_KEY)


def operate(request: Request) -> None:
    """The caller is an operator."""
    request.state.actor = KEY_ACTOR


class Desk:
    """The operators' routes for orders over a log that the test makes longer; one product is on sale."""

    def __init__(self) -> None:
        self.requests, self.commands = EndOfRequests(7), MemoryProducer()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """An operator who needs no key."""
        projection, app = folded([listed()]), FastAPI(dependencies=[Depends(operate)])
        nothing: object = None
        freshness = Freshness(self.requests.ends, lambda *_: None)
        lookup = Lookup(projection, Waiters(), nothing, KEY, freshness)  # type: ignore[arg-type]
        commands = Commands(self.commands)  # type: ignore[arg-type]
        access = Access("", nothing, KEY)  # type: ignore[arg-type]
        add_handlers(app)
        AdminOrders(projection, lookup, nothing, KEY, commands, access).add_to(app)  # type: ignore[arg-type]
        reports = asyncio.create_task(commands.run())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk") as client:
            yield client
        reports.cancel()

    def asked(self) -> list[int | None]:
        """The place of each command in the log."""
        found = [decode_command(value) for partition, value in self.commands.records if partition == partition_of(LAMP)]
        assert len(found) == len(self.commands.records)
        return [command.requests_end for command in found if isinstance(command, CancelProductRequested)]


async def test_a_cancellation_carries_where_the_log_ended_when_it_came() -> None:
    """Each has a place of its own: what was bought between the two is meant by the second alone."""
    desk = Desk()
    async with desk.client() as operator:
        assert (await operator.post(PATH)).status_code == 202
        desk.requests.end = 9
        assert (await operator.post(PATH)).status_code == 202
    assert desk.asked() == [7, 9]


async def test_nothing_is_sent_while_the_end_of_the_log_is_unknown() -> None:
    """503, to be tried again: a guessed place would spare orders, or undo those of a later sale."""
    desk = Desk()
    desk.requests.end = None
    async with desk.client() as operator:
        refused = await operator.post(PATH)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
        assert (refused.json()["retryable"], refused.headers["retry-after"]) == (True, "1")
        assert desk.commands.records == []
        desk.requests.end = 7
        assert (await operator.post(PATH)).status_code == 202
    assert desk.asked() == [7]
