"""Idempotency by the log alone, walked through whole: the rules as written hold, and each weaker one is refuted."""

import itertools
from dataclasses import fields
from functools import lru_cache

import pytest

from tests.simulation.gate_around import after_tail_lost, changes, rejections_flood, tail_lost, waits_for_nothing
from tests.simulation.gate_decide import Gate, Known, Step, View, step_of
from tests.simulation.gate_get import get_moves
from tests.simulation.gate_life import life_moves, start_moves
from tests.simulation.gate_post import post_moves
from tests.simulation.gate_walk import Verdict, Walk
from tests.simulation.gate_world import Gateway, Left, Life, Moment, Rules, Shared, World
from tests.simulation.gate_worlds import LIMITS, SMALL, VARIANTS, Refutation

ANSWERS = (
    "replays: reserved", "replays: rejected", "POST with body B replays", "422", "202 again", "joins the one",
    "409, in flight", "sold out", "503, try later", "to the log", "reads the row: reserved", "reads the row: rejected",
    "another body reads the row: 422", "another body: 503", "finds no row", "without a row the send waits at the gate",
    "GET: reserved", "GET: pending", "GET: 404", "the row is not there yet", "below the floor", "it is lost: 503",
    "M was acknowledged", "ignored, retired", "gives up what ended unknown", "Postgres is away", "starts from Postgres",
)  # fmt: skip


@lru_cache(None)
def walked(world: World) -> tuple[Verdict, frozenset[str]]:
    """What a walk found, and the labels of all steps that gateways took in it."""
    walk = Walk(world)
    return walk.run(), frozenset(walk.labels)


@pytest.mark.parametrize("world", SMALL, ids=lambda world: world.name)
def test_no_interleaving_breaks_the_rules_as_written(world: World) -> None:
    """Every state is visited, and every answer that is told in one is true."""
    verdict, _ = walked(world)
    assert (verdict.broken, verdict.way, verdict.complete) == (None, (), True)
    assert verdict.states > 1_000


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_is_given(answer: str) -> None:
    """The small worlds are large enough: a claim about an answer that nobody ever gives would hold for nothing."""
    assert any(answer in label for world in SMALL for label in walked(world)[1])


@pytest.mark.parametrize("weaker", VARIANTS, ids=lambda weaker: weaker.world.name)
def test_a_weaker_rule_breaks_its_claim(weaker: Refutation) -> None:
    """Each rule is there for a reason, and the walk finds the way to it."""
    verdict, _ = walked(weaker.world)
    assert verdict.broken is not None
    assert verdict.broken.claim == weaker.claim
    assert verdict.way


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.world.name)
def test_what_is_not_promised_does_happen(limit: Refutation) -> None:
    """A limit that the rules no longer have should be taken out of the list."""
    verdict, _ = walked(limit.world)
    assert verdict.broken is not None
    assert verdict.broken.claim == limit.claim


def test_every_rule_is_weakened_once() -> None:
    """No rule stands here that could be left out unseen."""
    weakened = {
        field.name
        for weaker in VARIANTS
        for field in fields(Rules)
        if getattr(weaker.world.rules, field.name) != getattr(Rules(), field.name)
    }
    assert weakened == {field.name for field in fields(Rules)}


def test_the_way_to_a_broken_claim_is_a_shortest_one_in_words() -> None:
    """Gateways keep their names on the way, although a state and its mirror image are one."""
    verdict, _ = walked(next(weaker.world for weaker in VARIANTS if weaker.world.name.startswith("joining")))
    assert verdict.way == (
        "gateway 1: POST waits at the gate",
        "gateway 2: POST waits at the gate",
        "gateway 1: hears that the end is 1",
        "gateway 2: no fresh view in time, the send: to the log",
        "K lands at 1, nobody hears of it",
        "gateway 1: POST joins the one on its way",
        "gateway 1: the view is fresh, the send: sold out",
    )


@pytest.mark.parametrize("left", [Left(sends=1, tail_losses=1, forgettings=1), Left(sends=1, gets=1, releases=0)])
def test_a_plain_walk_finds_as_many_states(left: Left) -> None:
    """Numbers, remembered moves and mirror images are a matter of speed alone."""
    world = World("plain", left)
    assert len(plainly_walked(world)) == Walk(world).run().states


def plainly_walked(world: World) -> set[frozenset[tuple[Shared, Gateway, int]]]:
    """All states, two gateways without order."""
    first = world.first()
    seen, waiting = {first}, [first]
    while waiting:
        for after in plain_steps(world, *waiting.pop()):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return {frozenset(((shared, one, one == two), (shared, two, one == two))) for shared, one, two in seen}


def plain_steps(world: World, shared: Shared, one: Gateway, two: Gateway) -> list[tuple[Shared, Gateway, Gateway]]:
    """Every step from one state."""
    after = [(change.shared, one, two) for change in changes(world, shared)]
    for gateway, other in ((one, two), (two, one)):
        at = Moment(world, shared, gateway)
        up = gateway.life is Life.UP
        moves = itertools.chain(life_moves(at), post_moves(at), get_moves(at)) if up else start_moves(at)
        after += [(move.shared, move.gateway, other) for move in moves]
    if shared.left.forgettings and waits_for_nothing(one) and waits_for_nothing(two):
        after.append((rejections_flood(shared).shared, one, two))
    if shared.left.tail_losses and shared.decided < len(shared.log):
        lost, rules = tail_lost(shared).shared, world.rules
        after.append((lost, after_tail_lost(one, lost.log, rules), after_tail_lost(two, lost.log, rules)))
    return after


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("known", Known)
def test_only_an_unknown_purchase_is_refused_and_only_on_a_fresh_view(known: Known, view: View, gate: Gate) -> None:
    """The decider that is plugged in, in one sentence."""
    refused = step_of(known, gate, view) is Step.REFUSE
    assert refused == ((known, gate, view) == (Known.UNKNOWN, Gate.REFUSES, View.FRESH))
