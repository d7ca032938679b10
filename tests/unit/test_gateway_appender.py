"""How admitted requests get into the log: gathered by ticks, acknowledged, or refused in time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from eventlog.kafka import DELIVERY_TIMEOUT_MS
from gateway import appender as rules
from gateway import problems
from gateway.appender import REPLAYED, Answer, Appender
from gateway.metrics import Metrics
from gateway.problems import Problem
from gateway.tail import BrokerClock
from ratelimit.claim import DEADLINE_S, Known
from ratelimit.limiter import Subject
from stampede_schemas.identifiers import Position
from stampede_schemas.topics import partition_of
from tests.support.gateway import AllowAll, MemoryProducer, OpenDoor, wanted

BUYER = Subject("ann", "127.0.0.1")


class Rig:
    """An appender over an in-memory log."""

    def __init__(
        self, door: OpenDoor | None = None, limits: AllowAll | None = None, claimed_s_max: float = DEADLINE_S
    ) -> None:
        self.log, self.limits = MemoryProducer(), limits or AllowAll()
        producer: Producer = self.log  # type: ignore[assignment]  # the three methods that the appender uses
        metrics = Metrics(CollectorRegistry())
        self.appender = Appender(producer, self.limits, door or OpenDoor(), BrokerClock(), metrics, claimed_s_max)

    async def append(self, count: int, product: str = "lamp", subject: Subject | None = BUYER) -> list[Answer]:
        """That many purchases at once."""
        return await asyncio.gather(*(self.appender.append(wanted(f"buy-{n}", product), subject) for n in range(count)))


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    """The appender at work."""
    task = asyncio.create_task(rig.appender.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def kinds(answers: list[Answer]) -> set[problems.Kind]:
    """Which problems are among the answers."""
    return {answer.kind for answer in answers if isinstance(answer, Problem)}


async def test_one_tick_is_one_limiter_call_and_one_record_per_partition() -> None:
    """Positions count up within the record, in the order of arrival."""
    async with running(Rig()) as rig:
        lamps, mugs = await asyncio.gather(rig.append(40), rig.append(5, "mug"))
    assert partition_of("lamp") != partition_of("mug")
    assert rig.limits.calls == [45]
    assert sorted(rig.log.sizes()) == [5, 40]
    assert lamps == [Position(partition_of("lamp"), 0, index) for index in range(40)]
    assert mugs == [Position(partition_of("mug"), 1, index) for index in range(5)]


async def test_more_than_a_record_holds_goes_into_several() -> None:
    """At most 500 requests each, nobody lost."""
    async with running(Rig()) as rig:
        answers = await rig.append(1_201)
    assert max(rig.log.sizes()) <= 500
    assert sum(rig.log.sizes()) == 1_201
    assert len(set(map(str, answers))) == 1_201


async def test_an_unacknowledged_purchase_is_of_unknown_outcome() -> None:
    """Neither accepted nor refused: the same key must come again. Readiness goes away meanwhile."""
    rig = Rig()
    rig.log.failing = True
    async with running(rig):
        (answer,) = await rig.append(1)
    assert isinstance(answer, Problem)
    assert answer.kind is problems.OUTCOME_UNKNOWN
    assert answer.extra == {"outcome": "unknown"}
    assert rig.appender.healthy is not True


async def test_the_refused_spend_nothing_in_the_log() -> None:
    """By the limits, or at the door; the others of the tick pass. Operators meet neither."""
    rig = Rig(OpenDoor({"mug": Problem(problems.SOLD_OUT, "Nothing is left.")}, {}))
    async with running(rig):
        results = await asyncio.gather(
            rig.append(3, subject=Subject("refused", None)),
            rig.append(2, "mug"),
            rig.append(1),
            rig.append(1, "mug", subject=None),
        )
    assert kinds(results[0]) == {problems.RATE_LIMITED}
    assert kinds(results[1]) == {problems.SOLD_OUT}
    assert not kinds(results[2] + results[3])
    assert sum(rig.log.sizes()) == 2


async def test_a_full_queue_refuses_buyers_at_once_with_jitter_but_no_operator() -> None:
    """Bounded: 503 with Retry-After instead of a wait without end."""
    rig = Rig()
    rig.log.silent = True
    tasks = [asyncio.create_task(rig.append(rules.WAITING_MAX))]
    await asyncio.sleep(0)  # the task begins,
    await asyncio.sleep(0)  # and so do the ones it makes
    assert rig.appender.full
    refused = await rig.append(50)
    assert kinds(refused) == {problems.OVERLOADED}
    assert {answer.retry_after_s for answer in refused if isinstance(answer, Problem)} == {1, 2, 3}
    operator = asyncio.create_task(rig.append(1, subject=None))
    rig.log.silent = False
    async with running(rig):
        assert not kinds(await operator)
        await asyncio.gather(*tasks)


async def test_draining_answers_everything_that_was_accepted() -> None:
    """A graceful stop leaves nobody without an answer."""
    async with running(Rig()) as rig:
        answers = asyncio.create_task(rig.append(100))
        await asyncio.sleep(0)
        await rig.appender.drain()
        assert not kinds(await answers)


async def test_what_redis_knows_is_said_without_the_log() -> None:
    """Accepted before: replayed; another body: 422; in flight: 409. In flight for too long goes to the log again."""
    known = {"buy-0": Known.ACCEPTED, "buy-1": Known.OTHER, "buy-2": Known.IN_FLIGHT, "buy-3": Known.AGAIN}
    door = OpenDoor({"lamp": Problem(problems.SOLD_OUT, "Nothing is left.")}, {})
    async with running(Rig(door, AllowAll(known))) as rig:
        answers = await rig.append(5)
    assert answers[0] is REPLAYED
    assert [answer.kind for answer in answers if isinstance(answer, Problem)] == [
        problems.KEY_REUSED,
        problems.IN_FLIGHT,
        problems.SOLD_OUT,
    ]
    assert isinstance(answers[3], Position)
    assert [claim.wanted for claim in rig.limits.claims] == [False] * 5
    assert rig.limits.settled == [("buy-3", "a")]


async def test_a_redis_that_may_have_forgotten_refuses_nobody() -> None:
    """Neither for what it knows nor because the door is closed; only its yes counts."""
    known = {"buy-0": Known.ACCEPTED, "buy-1": Known.OTHER, "buy-2": Known.IN_FLIGHT}
    door = OpenDoor({"lamp": Problem(problems.SOLD_OUT, "Nothing is left.")}, {})
    async with running(Rig(door, AllowAll(known, vouched=False))) as rig:
        answers = await rig.append(4)
    assert answers[0] is REPLAYED
    assert not kinds(answers)
    assert sum(rig.log.sizes()) == 3


async def test_the_door_asks_for_outcomes_before_it_turns_anybody_away() -> None:
    """Who has a row gets the first answer, or 422 for another body; if nobody can tell, everybody goes to the log."""
    closed = {"lamp": Problem(problems.SOLD_OUT, "Nothing is left.")}
    async with running(Rig(OpenDoor(closed, {"buy-1": "f", "buy-2": "another"}))) as rig:
        answers = await rig.append(3)
    assert kinds(answers[:1]) == {problems.SOLD_OUT}
    assert answers[1] is REPLAYED
    assert kinds(answers[2:]) == {problems.KEY_REUSED}
    assert not rig.log.records
    async with running(Rig(OpenDoor(closed, None))) as rig:
        assert not kinds(await rig.append(2))
    assert sum(rig.log.sizes()) == 2


async def test_the_row_says_which_body_was_bought_not_a_claim_that_says_another_or_nothing_any_more() -> None:
    """A claim can be a later body's: the row's gets the first answer, others 422, and the claim is set right."""
    known = {"buy-0": Known.AGAIN, "buy-1": Known.AGAIN, "buy-2": Known.OTHER, "buy-3": Known.OTHER}
    rows = {"buy-0": "f", "buy-1": "another", "buy-2": "f", "buy-3": "another"}
    async with running(Rig(OpenDoor(decided=rows), AllowAll(known))) as rig:
        answers = await rig.append(4)
    assert [answers[0], answers[2]] == [REPLAYED, REPLAYED]
    assert [kinds([answers[1]]), kinds([answers[3]])] == [{problems.KEY_REUSED}] * 2
    assert not rig.log.records
    assert rig.limits.settled == [("buy-0", "a"), ("buy-1", "a")]
    assert rig.limits.fingerprints == ["f", "another"]


async def test_claims_are_settled_by_what_the_log_said() -> None:
    """Accepted with the acknowledgement; open again without one; dropped where Redis went away over a refusal."""
    async with running(Rig()) as rig:
        await rig.append(1)
        rig.log.failing = True
        await rig.append(1)
    assert rig.limits.settled == [("buy-0", "a"), ("buy-0", "o")]
    async with running(Rig(limits=AllowAll(away=True))) as rig:
        await rig.append(1, subject=Subject("refused", None))
    assert rig.limits.settled == [("buy-0", "d")]


async def test_an_acknowledgement_after_the_claims_deadline_is_no_acceptance() -> None:
    """By then others may have been told that there is no such purchase: the same key must come again."""
    async with running(Rig(claimed_s_max=-1.0)) as rig:
        answers = await rig.append(1)
    assert kinds(answers) == {problems.OUTCOME_UNKNOWN}
    assert rig.limits.settled == [("buy-0", "a")]


def test_the_producer_gives_up_before_a_claim_does() -> None:
    """Else a purchase could still be on its way when its repeat is let in."""
    assert rules.WAIT_S_MAX + DELIVERY_TIMEOUT_MS / 1000 < DEADLINE_S
