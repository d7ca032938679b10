"""Rows that Postgres will never take: each is a placeholder, a release and a dead letter; its neighbours are sold."""

import time
from typing import Any

import pytest

from order_writer.consume.quarantine import NUMBERS_CONSTRAINT, REFUSED_MAX
from order_writer.postgres.pool import DatabaseWrong
from stampede_schemas.codec import encode
from stampede_schemas.decisions import AnyDecision, Reserved
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import ReleaseRequested
from stampede_schemas.topics import DEAD_LETTERS, DECISIONS
from tests.support.orders import Installation, applied, empty, listed, rejected, released, reserved, until


def given_back(place: Installation) -> list[tuple[str, Position, str]]:
    """The releases that were requested."""
    return [(r.purchase_id, r.reservation, r.reason) for _, r in place.requests() if isinstance(r, ReleaseRequested)]


def large(purchase_id: str, number: int) -> Reserved:
    """More units than a column holds: the driver itself refuses it."""
    return reserved(purchase_id, number, quantity=2**31)


def unsayable(purchase_id: str, number: int) -> Reserved:
    """A NUL, which Postgres' text does not hold."""
    return reserved(purchase_id, number, method="o\0k")


def forbidden(purchase_id: str, number: int) -> Reserved:
    """Violates a check that an operator has added."""
    return reserved(purchase_id, number, method="voucher")


async def count_inserts(place: Installation) -> None:
    """Let the sequence `inserts` count the statements that insert purchases, also those that are rolled back."""
    await place.rows("CREATE SEQUENCE inserts")
    await place.rows(
        """CREATE FUNCTION count_insert() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM nextval('inserts'); RETURN NULL; END $$"""
    )
    await place.rows("CREATE TRIGGER counted BEFORE INSERT ON purchases EXECUTE FUNCTION count_insert()")


@pytest.mark.parametrize("payment", ["none", "simulated"])
async def test_a_refused_row_is_a_placeholder_and_its_batch_is_stored(place: Installation, payment: str) -> None:
    """Too large, not storable, against a check: one release and one dead letter each; the others soon, by halves."""
    await place.rows("ALTER TABLE purchases ADD CHECK (payment_method <> 'voucher')")
    await count_inserts(place)
    bad: list[AnyDecision] = [large("large", 501), unsayable("nul", 502), forbidden("check", 503)]
    good: list[AnyDecision] = [reserved(f"p{i}", i + 1) for i in range(400)]
    no = rejected("no", method="o\0k")
    unnamed = reserved("a\0name", 504)
    place.log.append(5, [listed()])
    async with place.writer(payment=payment) as task:
        await until(lambda: applied(place, 5, 1), "running", task=task)
        place.log.append(5, [*good[:150], bad[0], *good[150:], bad[1]], [bad[2], no, unnamed], [rejected("last")])
        await until(lambda: applied(place, 5, 4), "the partition goes on", task=task)
        assert await place.value("SELECT last_value FROM inserts") < 200  # type: ignore[operator]  # of 406 rows
        confirmed = "SELECT count(*) = 400 FROM purchases WHERE status = 'confirmed'"
        await until(lambda: place.value(confirmed), "the neighbours are sold", task=task)
        await until(lambda: empty(place), "sent", task=task)
        place.log.append(5, [released("nul", Position(5, 1, 401), reason="row_error")])
        back = "SELECT stock_returned_at FROM purchases WHERE purchase_id = 'nul'"
        await until(lambda: place.value(back), "its units are back", task=task)
    placeholders = await place.rows("SELECT * FROM purchases WHERE reason = 'row_error' ORDER BY purchase_id")
    assert [(row["purchase_id"], row["status"], row["version"]) for row in placeholders] == [
        ("check", "released", 3),
        ("large", "released", 3),
        ("nul", "released", 3),
    ]
    assert [row["buyer_id"] for row in placeholders] == ["buyer-of-check", "buyer-of-large", "buyer-of-nul"]
    assert (await place.statuses())["no"] == "rejected"
    at = {"large": (1, 150), "nul": (1, 401), "check": (2, 0), "a\0name": (2, 2)}
    assert sorted(given_back(place)) == sorted((p, Position(5, *where), "row_error") for p, where in at.items())
    published = [event for event in place.events() if event.reason == "row_error"]
    assert sorted((event.purchase_id, event.version) for event in published) == sorted((p, 3) for p in at)
    assert {event.quantity for event in published if event.purchase_id == "large"} == {2**31}


async def test_the_dead_letter_of_a_refused_row_holds_all_that_is_known(place: Installation) -> None:
    """Where the decision stood, its own bytes, the record's headers, why and since when."""
    bad = unsayable("nul", 2)
    place.log.append(5, [listed()])
    place.log.headers = [("traceparent", b"00-abc")]
    place.log.append(5, [reserved("ok", 1), bad])
    began_ms = time.time_ns() // 1_000_000
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 5, 2), "applied", task=task)
        await until(lambda: empty(place), "sent", task=task)
    [dead_letter] = place.records(DEAD_LETTERS.name)
    assert dead_letter.value() == encode(bad)
    assert dead_letter.key() == b"stampede.decisions/5/1/1"
    headers: dict[str, Any] = dict(dead_letter.headers() or [])
    assert began_ms - 1_000 < int(headers.pop("first_seen_ms")) < began_ms + 30_000
    assert headers == {
        "reason": b"row_error",
        "topic": DECISIONS.name.encode(),
        "partition": b"5",
        "offset": b"1",
        "index": b"1",
        "original.traceparent": b"00-abc",
    }


async def test_a_refused_row_applied_again_changes_nothing(place: Installation) -> None:
    """Its placeholder stands where the row stood: no second release, no second dead letter. A reservation of an older
    id in another partition is released by its own log."""
    place.log.append(5, [listed()], [unsayable("nul", 1), reserved("ok", 2)])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 5, 2), "applied", task=task)
        await until(lambda: empty(place), "sent", task=task)
    await place.rows("UPDATE progress SET next_offset = 0, source_offset = -1, load = '', anchor = -1")
    place.log.append(7, [unsayable("nul", 3)])
    async with place.writer(group="another", payment="none") as task:
        await until(lambda: applied(place, 5, 2), "applied again", task=task)
        await until(lambda: applied(place, 7, 1), "applied elsewhere", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert given_back(place) == [("nul", Position(5, 1, 0), "row_error")]
    assert len(place.values(DEAD_LETTERS.name)) == 1


@pytest.mark.parametrize("payment", ["none", "webhook"])
async def test_after_a_restore_a_refused_row_begins_above_what_was_published(place: Installation, payment: str) -> None:
    """As its neighbours do, with payments and without: no version is published twice."""
    await place.rows("INSERT INTO published VALUES ('nul', 7), ('ok', 4)")
    place.log.append(5, [listed()], [unsayable("nul", 1), reserved("ok", 2), reserved("new", 3)])
    async with place.writer(payment=payment) as task:
        await until(lambda: applied(place, 5, 2), "applied", task=task)
        await until(lambda: empty(place), "sent", task=task)
    versions = {row[0]: row[1] for row in await place.rows("SELECT purchase_id, version FROM purchases")}
    sold = payment == "none"
    assert versions == {"nul": 10, "ok": 6 + sold, "new": 2 + sold}
    published = {event.purchase_id: event.version for event in place.events()}
    assert published == ({"nul": 10, "ok": 7, "new": 3} if sold else {"nul": 10})


async def test_when_postgres_refuses_everything_nothing_is_released(place: Installation) -> None:
    """A hundred refused rows of a batch are theirs to blame; when it is a constraint of somebody's that no row passes,
    the writer stops, the sale is not given back, and once the constraint is gone it goes on."""
    place.log.append(5, [listed()], [unsayable(f"bad-{n}", n + 1) for n in range(REFUSED_MAX)])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 5, 2), "a hundred are given back", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert len(given_back(place)) == REFUSED_MAX
    await place.rows("ALTER TABLE purchases ADD CONSTRAINT wrong CHECK (quantity > 2) NOT VALID")
    place.log.append(5, *[[reserved(f"p{r}-{i}", 1_000 + r * 100 + i) for i in range(100)] for r in range(3)])
    with pytest.raises(DatabaseWrong, match="refuses more than 100 rows of one batch"):
        async with place.writer(payment="none") as task:
            await task
    assert len(given_back(place)) == REFUSED_MAX
    await place.rows("ALTER TABLE purchases DROP CONSTRAINT wrong")
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 5, 5), "applied", task=task)
    assert await place.value("SELECT count(*) FROM purchases WHERE status = 'confirmed'") == 300


async def test_a_product_that_the_catalogue_cannot_hold_stops_nothing(place: Installation) -> None:
    """Its record is a dead letter; what is sold of it is sold."""
    await place.rows("ALTER TABLE products ADD CHECK (stock < 1000)")
    place.log.append(5, [listed("many", 5_000), listed("few", 10), reserved("p1", 1, product_id="many")])
    async with place.writer(payment="none") as task:
        await until(lambda: applied(place, 5, 1), "applied", task=task)
        await until(lambda: empty(place), "sent", task=task)
    assert await place.statuses() == {"p1": "confirmed"}
    assert [row["product_id"] for row in await place.rows("SELECT product_id FROM products")] == ["few"]
    [dead_letter] = place.records(DEAD_LETTERS.name)
    assert dead_letter.value() == place.values(DECISIONS.name)[0]


async def test_a_repeated_reservation_number_stops_its_partition_alone(place: Installation) -> None:
    """A broken fold: nothing of that batch is committed, the other partitions go on, also after a restart, and
    somebody is paged."""
    place.log.append(0, [listed()], [reserved("p1", 1)])
    async with place.writer() as task:
        await until(lambda: applied(place, 0, 2), "applied", task=task)
        place.log.append(0, [reserved("p2", 1)], [reserved("p3", 2)])
        why = "SELECT stopped FROM progress WHERE partition = 0"
        await until(lambda: place.value(why), "the reason is stored", task=task)
        assert NUMBERS_CONSTRAINT in str(await place.value(why))
        place.log.append(1, [listed("sock")], [reserved("p4", 1, product_id="sock")])
        await until(lambda: applied(place, 1, 2), "the others go on", task=task)
    assert sorted(await place.statuses()) == ["p1", "p4"]
    async with place.writer() as task:
        place.log.append(1, [reserved("p5", 2, product_id="sock")])
        sold = "SELECT true FROM purchases WHERE purchase_id = 'p5' AND status = 'confirmed'"
        await until(lambda: place.value(sold), "sold after a restart", task=task)
    assert await applied(place, 0, 2)
    # Somebody repairs what was wrong (here: what stood in the way), and the next start goes on.
    await place.rows("UPDATE purchases SET reservation_no = 99 WHERE purchase_id = 'p1'")
    async with place.writer() as task:
        await until(lambda: applied(place, 0, 4), "repaired", task=task)
        assert await place.value(why) is None
