"""How purchases get into the log, or are answered without it: in micro-batches, on a fresh view, once for each key."""

import asyncio

from msgspec.structs import replace

from gateway.admission import batcher as rules
from gateway.admission.batcher import InFlight
from gateway.admission.sale_gate import STALE_APPENDS_PER_S
from gateway.admission.send import REPLAYED, UNSETTLED_S_MAX, Unsettled
from gateway.http import problems
from gateway.read_side.purchase_memory import decided
from ratelimit.limiter import Subject
from service.problem_details import Kind, Problem
from stampede_schemas.identifiers import Position, PurchaseId
from stampede_schemas.topics import partition_of
from tests.support.builders.gateway import (
    rejected,
    reserved,
    wanted,
)
from tests.support.fakes.batching import AT, HERE, SOLD_OUT, Rig, asked, kinds, other_body, running

# ---- batches


async def test_one_batch_is_one_call_to_the_limits_and_one_record_per_partition() -> None:
    """Positions count up within the record, in the order of arrival."""
    async with running(Rig()) as rig:
        sends = [rig.send(f"mug-{n}", "mug") for n in range(5)] + [rig.send(f"buy-{n}") for n in range(40)]
        answers = await asyncio.gather(*sends)
    assert partition_of("lamp") != partition_of("mug")
    assert rig.limits.calls == [45]
    assert sorted(rig.log.sizes()) == [5, 40]
    assert answers[:5] == [Position(partition_of("mug"), 0, index) for index in range(5)]
    assert answers[5:] == [Position(HERE, 1, index) for index in range(40)]


async def test_more_than_a_record_holds_goes_into_several() -> None:
    """At most 500 requests each, none lost."""
    async with running(Rig()) as rig:
        answers = await rig.buy(1_201)
    assert max(rig.log.sizes()) <= 500
    assert sum(rig.log.sizes()) == 1_201
    assert len(set(map(str, answers))) == 1_201


async def test_the_refused_spend_nothing_in_the_log() -> None:
    """By the limits, or at the gate; the others of the batch pass. Operators meet neither."""
    async with running(Rig({"mug": "sold out"})) as rig:
        limited, gone, passed, operator = await asyncio.gather(
            rig.send("a", subject=Subject("refused", None)),
            rig.send("b", "mug"),
            rig.send("c"),
            rig.batcher.append(wanted("d", "mug")),
        )
    assert kinds(limited) == {problems.RATE_LIMITED}
    assert kinds(gone) == {problems.SOLD_OUT}
    assert not kinds(passed, operator)
    assert sum(rig.log.sizes()) == 2


async def test_a_full_queue_refuses_buyers_at_once_with_jitter_but_no_operator() -> None:
    """Bounded: 503 with Retry-After instead of a wait without end."""
    rig = Rig()
    waiting = [rig.send(f"buy-{n}") for n in range(rules.WAITING_MAX)]
    await asyncio.sleep(0)
    assert rig.batcher.full
    refused = await asyncio.gather(*(rig.send(f"late-{n}") for n in range(50)))
    assert kinds(*refused) == {problems.OVERLOADED}
    assert {answer.retry_after_s for answer in refused if isinstance(answer, Problem)} == {1, 2, 3}
    operator = asyncio.create_task(rig.batcher.append(wanted("op")))
    async with running(rig):
        assert not kinds(await operator)
        await asyncio.gather(*waiting)


async def test_draining_answers_everything_that_was_accepted() -> None:
    """A graceful stop leaves no request without an answer, those at the gate included."""
    async with running(Rig(end=None)) as rig:
        rig.gate.closed = SOLD_OUT
        answers = [rig.send(f"buy-{n}") for n in range(100)]
        await asyncio.sleep(0)
        await rig.batcher.drain()
        assert all(answer.done() for answer in answers)


# ---- one key, one outcome


async def test_a_repeat_of_what_was_accepted_or_decided_here_is_replayed_without_limits_and_log() -> None:
    """Whatever the gate says by then, and however the limits stand."""
    async with running(Rig()) as rig:
        first = await rig.send()
        again = [await rig.send(subject=Subject("refused"))]
        rig.gate.closed = SOLD_OUT
        rig.decide(reserved())
        again.append(await rig.send(subject=Subject("refused")))
    assert first == AT
    assert again == [REPLAYED, REPLAYED]
    assert rig.limits.calls == [1]
    assert rig.log.sizes() == [1]


async def test_concurrent_duplicates_join_and_are_appended_once() -> None:
    """Fifty sends, one record with one request, one answer."""
    async with running(Rig()) as rig:
        answers = await asyncio.gather(*(rig.send() for _ in range(50)))
    assert answers.count(AT) == 1
    assert answers.count(REPLAYED) == 49
    assert rig.log.sizes() == [1]


async def test_a_caller_that_goes_away_takes_nothing_from_those_who_joined() -> None:
    """Its send goes on, and they get the answer."""
    async with running(Rig()) as rig:
        rig.log.silent = True
        first = rig.send()
        await asyncio.sleep(0)
        joined = rig.send()
        await asyncio.sleep(0)
        first.cancel()
        rig.log.silent = False
        assert await joined is REPLAYED


async def test_another_body_is_misuse_only_against_a_decision() -> None:
    """Before it, the second waits, and is then told by what was decided: 422, or that it is the one that was bought."""
    for fingerprint, told in (("f", {problems.KEY_REUSED}), ("g", set[Kind]())):
        async with running(Rig()) as rig:
            await rig.send()
            other = rig.send_other()
            await asyncio.sleep(0.02)
            assert not other.done()
            rig.decide(replace(reserved(), fingerprint=fingerprint))
            assert kinds(await other) == told
            assert rig.log.sizes() == [1]


async def test_another_body_of_what_stays_undecided_is_in_flight() -> None:
    """After half a second: nothing of it was logged."""
    async with running(Rig()) as rig:
        await rig.send()
        assert kinds(await rig.send_other()) == {problems.IN_FLIGHT}
        assert rig.log.sizes() == [1]


async def test_another_body_goes_its_own_way_when_the_first_was_refused_without_an_outcome() -> None:
    """The first was limited: nothing was logged, so the key is as good as new."""
    rig = Rig()
    first = rig.send(subject=Subject("refused"))
    await asyncio.sleep(0)
    other = rig.send_other()
    await asyncio.sleep(0)
    async with running(rig):
        assert kinds(await first) == {problems.RATE_LIMITED}
        assert await other == AT


# ---- unknown outcomes


async def test_an_unacknowledged_purchase_is_of_unknown_outcome_and_its_repeat_passes_the_gate() -> None:
    """It may stand in the log, or land later: only the fold may say no to it. Readiness goes away meanwhile."""
    rig = Rig()
    rig.log.failing = True
    async with running(rig):
        answer = await rig.send()
        assert isinstance(answer, Problem)
        assert answer.kind is problems.OUTCOME_UNKNOWN
        assert answer.extra == {"outcome": "unknown"}
        assert rig.batcher.healthy is not True
        rig.log.failing, rig.gate.closed = False, SOLD_OUT
        assert kinds(await rig.send("stranger")) == {problems.SOLD_OUT}
        assert isinstance(await rig.send(), Position)


async def test_another_body_of_an_unknown_outcome_is_in_flight() -> None:
    """Nothing was decided that it could be compared with."""
    rig = Rig()
    rig.log.failing = True
    async with running(rig):
        await rig.send()
        rig.log.failing = False
        assert kinds(await rig.send_other()) == {problems.IN_FLIGHT}


async def test_an_unknown_outcome_is_forgotten_when_nothing_can_land_any_more() -> None:
    """After ten minutes the gate counts again."""
    now = [0.0]
    rig = Rig()
    sends = InFlight(rig.memory, Unsettled(lambda: now[0]))
    sends.unsettled.add(wanted())
    assert sends.known(wanted()) == "unsettled"
    assert sends.known(other_body()) == "other undecided"
    now[0] = UNSETTLED_S_MAX + 1
    assert sends.known(wanted()) == "nothing"


# ---- the gate


async def test_the_gate_looks_once_more_when_the_view_is_fresh() -> None:
    """The end was not applied yet: what it brings decides. A purchase that is known by then gets its first answer."""
    for decision, answer in ((reserved(), REPLAYED), (rejected(), REPLAYED)):
        async with running(Rig(SOLD_OUT, end=1, patient=True)) as rig:
            waiting = rig.send()
            await asked(rig)
            assert not waiting.done()
            rig.decide(decision)
            rig.freshness.applied(HERE, 0)
            assert await waiting is answer
            assert not rig.log.records


async def test_what_sold_out_while_the_limits_were_asked_is_refused_at_the_gate() -> None:
    """Slow limits must not put into the log what the gate knows by then; what came back by then is let through."""
    async with running(Rig()) as rig:
        rig.limits.meanwhile = lambda: setattr(rig.gate, "closed", SOLD_OUT)
        assert kinds(await rig.send()) == {problems.SOLD_OUT}
        assert rig.log.sizes() == []
        rig.limits.meanwhile = lambda: setattr(rig.gate, "closed", {})
        assert not kinds(await rig.send())
        assert rig.log.sizes() == [1]


async def test_a_gate_that_reopened_meanwhile_lets_through() -> None:
    """A unit came back in what was applied."""
    async with running(Rig(SOLD_OUT, end=1, patient=True)) as rig:
        waiting = rig.send()
        await asked(rig)
        rig.gate.closed = {}
        rig.freshness.applied(HERE, 0)
        assert await waiting == AT


async def test_a_repeat_that_joins_at_the_gate_makes_its_arrival_now() -> None:
    """The end asked for before it came does not cover what it may have brought into the log elsewhere."""
    async with running(Rig(SOLD_OUT, end=1, patient=True)) as rig:
        first = rig.send()
        await asked(rig)
        rig.requests.end = 2  # its own send through another gateway
        joined = rig.send()
        await asyncio.sleep(0)
        rig.freshness.applied(HERE, 0)
        await asked(rig)
        assert not first.done()
        rig.decide(reserved(), Position(HERE, 1, 0))
        rig.freshness.applied(HERE, 1)
        assert await first is REPLAYED
        assert await joined is REPLAYED


async def test_without_a_fresh_view_the_refused_crowd_stays_out_of_the_log() -> None:
    """At most so many a second go there for the log to judge; the others are told to come again."""
    async with running(Rig(SOLD_OUT, end=None)) as rig:
        answers = await rig.buy(5 * STALE_APPENDS_PER_S)
    assert kinds(*answers) == {problems.OVERLOADED}
    appended = sum(rig.log.sizes())
    assert STALE_APPENDS_PER_S <= appended <= 2 * STALE_APPENDS_PER_S  # a second may begin in between


async def test_without_a_fresh_view_a_closed_sale_appends_nothing_and_an_open_one_everything() -> None:
    """Whether a sale has begun, no decision tells; and a purchase that the last known state lets through goes on."""
    async with running(Rig({"lamp": "not open"}, end=None)) as rig:
        assert kinds(*await rig.buy(20)) == {problems.OVERLOADED}
        assert not rig.log.records
        rig.gate.closed = {}
        assert not kinds(*await rig.buy(20))


# ---- remembered ids


async def test_a_remembered_id_is_answered_by_its_row_even_when_nothing_is_left() -> None:
    """Same body: the first answer; another body: 422. Neither spends a token or reaches the log."""
    row = decided(reserved(), AT, None)
    rig = Rig(SOLD_OUT, [row])
    rig.memory.ids.add_held(PurchaseId("buy"))
    async with running(rig):
        assert await rig.send() is REPLAYED
        assert kinds(await rig.send_other()) == {problems.KEY_REUSED}
    assert rig.limits.calls == []
    assert rig.rows.asked == ["buy"]


async def test_a_remembered_id_that_the_rows_disprove_is_a_new_purchase() -> None:
    """The set of ids may be wrong in that direction: the gate counts."""
    rig = Rig(SOLD_OUT)
    rig.memory.ids.add_held(PurchaseId("buy"))
    async with running(rig):
        assert kinds(await rig.send()) == {problems.SOLD_OUT}
    assert rig.rows.asked == ["buy"]


async def test_a_remembered_id_without_rows_goes_to_the_log() -> None:
    """Postgres is away or behind: only the fold may say no."""
    rig = Rig(SOLD_OUT, rows_away=True)
    rig.memory.ids.add_rejected(HERE, PurchaseId("buy"))
    async with running(rig):
        assert await rig.send() == AT
