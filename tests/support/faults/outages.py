"""A sale in the log, and what must hold after Postgres was away: nothing lost, undone, given up or written twice."""

from stampede_schemas.decisions import AnyDecision
from stampede_schemas.topics import DEAD_LETTERS
from tests.support.builders.orders import Installation, listed, reserved
from tests.support.faults.proxy import Proxy

EACH = 20


def through(between: Proxy, place: Installation) -> str:
    """The DSN by way of the proxy."""
    front, _, database = place.postgres.rpartition("/")
    return f"{front.rpartition(':')[0]}:{between.port}/{database}"


def sell(place: Installation, first: int, records: int, partition: int = 0) -> None:
    """Sell 20 a record; numbers from `first` on."""
    name = f"shoe-{partition}"
    sales: list[list[AnyDecision]] = [
        [reserved(f"{partition}-{n}-{i}", n * EACH + i + 1, product_id=name) for i in range(EACH)]
        for n in range(first, first + records)
    ]
    if first == 0:
        sales.insert(0, [listed(name, 10**6)])
    place.log.append(partition, *sales)


async def stored(place: Installation, count: int) -> bool:
    """Whether so many purchases have a row."""
    return await place.value("SELECT count(*) FROM purchases") == count


async def at_rest(place: Installation, count: int) -> bool:
    """Whether so many are confirmed, and told."""
    confirmed = "SELECT count(*) FILTER (WHERE status = 'confirmed') FROM purchases"
    return (await place.value(confirmed), await place.value("SELECT count(*) FROM outbox")) == (count, 0)


def nothing_lost_or_undone(place: Installation, count: int) -> None:
    """Each order told once or more, none released, no dead letter."""
    events = place.events()
    assert {event.version for event in events} == {3}
    assert len({event.purchase_id for event in events}) == count
    assert place.requests() == []
    assert place.values(DEAD_LETTERS.name) == []
