"""Gate model: the small worlds, and the weaker rules with the claim that each one breaks."""

from typing import NamedTuple

from tests.simulation.gate_decide import Gate, Known, Step, View, step_of
from tests.simulation.gate_log import Entry, FoldRules
from tests.simulation.gate_world import Barrier, Left, Rules, World

REJECTED = (Entry.L, Entry.K_A)  # K was rejected before the walk begins
RESERVED = (Entry.L, Entry.L_RELEASED, Entry.K_A)
REJECTED_THEN_RESERVED = (*REJECTED, Entry.MANY_REJECTIONS, Entry.L_RELEASED, Entry.K_A)

# Every answer is given in one of these; the test suite walks them. Each large one adds a step or joins two.
SMALL = (
    World("3 sends, M competes", Left(sends=3, rivals=1)),
    World("M is sent here: acknowledged, it is an end", Left(sends=3, rivals_here=1, releases=0)),
    World("killed, restarted, record forgotten", Left(sends=2, kills=1, evictions=1)),
    World("GET, killed, older Postgres", Left(sends=1, gets=1, kills=1, restores=1)),
    World("GET, killed, older Postgres, record forgotten",
          Left(sends=1, gets=1, kills=1, restores=1, evictions=1, releases=0)),
    World("GET, record and rejection forgotten", Left(sends=1, gets=1, evictions=1, forgettings=1, releases=0)),
    World("GET, older Postgres, rejection forgotten", Left(gets=2, restores=1, forgettings=1), begins=REJECTED),
    World("rejection forgotten, decided anew", Left(sends=1, gets=2, forgettings=1), begins=REJECTED),
    World("the row is ahead of the view", Left(sends=1, gets=2), begins=REJECTED_THEN_RESERVED, second_starts_at=1),
    World("tail lost, M competes", Left(sends=2, rivals=1, tail_losses=1)),
    World("tail lost, killed", Left(sends=2, kills=1, tail_losses=1)),
    World("another body", Left(sends=1, other_sends=2)),
    World("another body, record forgotten", Left(sends=1, other_sends=1, evictions=1)),
    World("the hold of K ends", Left(sends=2, ends=1, evictions=1)),
    World("rejected, then retired", Left(sends=1, gets=1, evictions=1, retirements=1, releases=0), begins=REJECTED),
    World("reserved, then retired", Left(sends=1, gets=1, evictions=1, retirements=1, releases=0), begins=RESERVED),
    World("retired before any decision", Left(sends=2, retirements=1, releases=0)),
    World("the filter hits always, POST", Left(sends=2), filter_always_hits=True),
    World("the filter hits always, GET", Left(sends=1, gets=1, evictions=1), filter_always_hits=True),
)  # fmt: skip

LARGE = (
    World("3 sends, M is sent here", Left(sends=3, rivals_here=1)),
    World("killed, M competes", Left(sends=2, rivals=1, kills=1)),
    World("3 sends, killed", Left(sends=3, kills=1)),
    World("3 sends, record forgotten", Left(sends=3, evictions=1)),
    World("killed twice, records forgotten", Left(sends=2, kills=2, evictions=2)),
    World("released, GET, killed, older Postgres, record forgotten",
          Left(sends=1, gets=1, kills=1, restores=1, evictions=1)),
    World("2 sends, GET, killed, older Postgres", Left(sends=2, gets=1, kills=1, restores=1)),
    World("released, GET, record and rejection forgotten", Left(sends=1, gets=1, evictions=1, forgettings=1)),
    World("rejection and record forgotten, decided anew", Left(sends=1, gets=2, evictions=1, forgettings=1),
          begins=REJECTED),
    World("2 sends, rejection and record forgotten", Left(sends=2, gets=1, evictions=1, forgettings=1),
          begins=REJECTED),
    World("older Postgres, rejection forgotten, decided anew",
          Left(sends=1, gets=2, kills=1, restores=1, forgettings=1), begins=REJECTED),
    World("3 sends, tail lost, M competes", Left(sends=3, rivals=1, tail_losses=1)),
    World("tail lost, GET", Left(sends=2, gets=1, tail_losses=1)),
    World("tail lost twice, M is sent here", Left(sends=2, rivals_here=1, tail_losses=2)),
    World("another body, M competes", Left(sends=2, other_sends=1, rivals=1)),
    World("another body, killed, record forgotten", Left(sends=1, other_sends=1, kills=1, evictions=1)),
    World("another body, tail lost", Left(sends=2, other_sends=1, tail_losses=1)),
    World("3 sends, the hold of K ends", Left(sends=3, ends=1, evictions=1)),
    World("retired, killed", Left(sends=2, evictions=1, kills=1, retirements=1)),
    World("rejected, then retired, 2 sends", Left(sends=2, gets=1, evictions=1, retirements=1, releases=0),
          begins=REJECTED),
    World("the filter hits always, M competes", Left(sends=2, rivals=1), filter_always_hits=True),
)  # fmt: skip


class Refutation(NamedTuple):
    """A world in which a claim is expected to be broken."""

    claim: str
    world: World


def _refuses_without_waiting(known: Known, gate: Gate, view: View) -> Step:
    """A decider that says "sold out" where the rules say: come back."""
    step = step_of(known, gate, view)
    return Step.REFUSE if step is Step.TRY_LATER else step


_REJECTS_WHEN_RETIRED = Rules(fold=FoldRules(ignores_when_retired=False), rejected_never_replaces=False)
_TAIL_LOST = Left(sends=2, tail_losses=1)

# Each rule that is a field of Rules is weakened here, in the smallest world that shows why it is there.
VARIANTS = (
    Refutation("G1", World("no barrier", Left(sends=2), Rules(barrier=Barrier.NONE))),
    Refutation("G1", World("an end asked for before the arrival", Left(sends=2),
                           Rules(barrier=Barrier.BEFORE_ARRIVAL))),
    Refutation("G1", World("an earlier record's acknowledgement is an end", Left(sends=2, rivals_here=1),
                           Rules(earlier_acknowledgement_is_no_end=False))),
    Refutation("G1", World("no second look after the barrier", Left(sends=2), Rules(second_look=False))),
    Refutation("G1", World("refused when the view is not fresh in time", Left(sends=2),
                           Rules(decide=_refuses_without_waiting))),
    Refutation("G1", World("joining keeps the first arrival", Left(sends=3), Rules(joining_renews_arrival=False))),
    Refutation("G1", World("ids of reservations forgotten", Left(sends=2, evictions=1),
                           Rules(keeps_reserved_ids=False))),
    Refutation("G1", World("ids of rejections forgotten", Left(sends=2, evictions=1),
                           Rules(keeps_rejected_ids=False))),
    Refutation("G1", World("ids of retired products forgotten", Left(sends=1, evictions=1, retirements=1),
                           Rules(keeps_retired_ids=False), RESERVED)),
    Refutation("G1", World("ids read before progress", Left(sends=2, kills=1), Rules(starts_from_one_snapshot=False))),
    Refutation("G1", World("no row proves something at any progress", Left(sends=2, evictions=1),
                           Rules(absent_row_must_cover_view=False))),
    Refutation("G2", World("GET without the floor", Left(sends=1, gets=1, evictions=1, forgettings=1, releases=0),
                           Rules(floor=False))),
    Refutation("G2", World("GET without the floor, older Postgres", Left(gets=1, restores=1, forgettings=1),
                           Rules(floor=False), REJECTED)),
    Refutation("G3", World("the fold forgets ended reservations", Left(sends=2, ends=1),
                           Rules(fold=FoldRules(remembers_ended=False)))),
    Refutation("G4", World("reserved is told when accepted", Left(sends=1, rivals=1),
                           Rules(reserved_needs_decision=False))),
    Refutation("G5", World("versions counted in memory", Left(gets=2, restores=1), Rules(versions_by_status=False),
                           REJECTED_THEN_RESERVED, second_starts_at=3)),
    Refutation("G5", World("a rejection replaces what held units", Left(gets=2, evictions=1, restores=1),
                           Rules(rejected_never_replaces=False), REJECTED_THEN_RESERVED)),
    Refutation("G5", World("a row leaves an old rejection in memory", Left(gets=2),
                           Rules(told_row_replaces_rejection=False), REJECTED_THEN_RESERVED, second_starts_at=1)),
    Refutation("G5", World("a retired product rejects, a rejection replaces", Left(sends=1, gets=2, retirements=1),
                           _REJECTS_WHEN_RETIRED, RESERVED)),
    Refutation("G6", World("422 before a decision", Left(sends=1, other_sends=1),
                           Rules(mismatch_needs_decision=False))),
    Refutation("G7", World("a lost tail is believed for ever", _TAIL_LOST,
                           Rules(notices_lost=False, end_below_forgets=False))),
    Refutation("G7", World("lost only by an end, not when decisions pass", Left(sends=2, rivals=1, tail_losses=1),
                           Rules(notices_lost=False))),
    Refutation("G7", World("an end below is only disregarded", _TAIL_LOST, Rules(end_below_forgets=False))),
    Refutation("G7", World("a repeat asks for no end", _TAIL_LOST, Rules(repeat_asks_end=False))),
    Refutation("G7", World("an end is compared with later acknowledgements", Left(sends=1, gets=1),
                           Rules(acknowledged_when_asked=False))),
)  # fmt: skip

# What the rules do not promise, shown rather than hidden: both need a partition leader or a gateway that lags behind.
LIMITS = (
    Refutation("G1", World("a deposed leader names an old end", Left(sends=2), stale_ends=True)),
    Refutation("G6", World("another body, rejection forgotten, view behind", Left(other_sends=2, forgettings=1),
                           begins=REJECTED)),
)  # fmt: skip
