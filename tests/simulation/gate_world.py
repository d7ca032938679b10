"""Gate model: the state of the small world, the rules with their weaker variants, and what one gateway sees of it.

Two gateways share one partition and one database. State is made of frozen tuples; the walk keeps each once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from tests.simulation.gate_decide import Decide, Gate, step_of
from tests.simulation.gate_log import (
    BODY,
    FOLD_AS_WRITTEN,
    VERSION,
    Body,
    Entry,
    Fold,
    FoldRules,
    History,
    Log,
    Row,
    Status,
    fold,
    history,
    row,
)


class Barrier(StrEnum):
    """Which end of requests makes a view fresh for an arrival."""

    AFTER_ARRIVAL = "an end asked for after the arrival"
    BEFORE_ARRIVAL = "an end asked for at any time"
    NONE = "no end at all"


@dataclass(frozen=True)
class Rules:
    """The defaults are the rules as written; each other value is a weaker rule that the walk has to refute."""

    fold: FoldRules = FOLD_AS_WRITTEN
    decide: Decide = step_of
    barrier: Barrier = Barrier.AFTER_ARRIVAL
    earlier_acknowledgement_is_no_end: bool = True  # one of a record that was produced before the arrival
    second_look: bool = True  # after the barrier
    joining_renews_arrival: bool = True
    keeps_reserved_ids: bool = True
    keeps_rejected_ids: bool = True
    keeps_retired_ids: bool = True
    starts_from_one_snapshot: bool = True  # ids and progress
    absent_row_must_cover_view: bool = True  # before a hit of the filter is called false
    rejected_never_replaces: bool = True  # what is known to have held units
    told_row_replaces_rejection: bool = True  # that memory holds from an older part of the log
    mismatch_needs_decision: bool = True
    floor: bool = True
    versions_by_status: bool = True
    reserved_needs_decision: bool = True
    notices_lost: bool = True  # an accepted record that decisions have passed, or that an end does not reach
    repeat_asks_end: bool = True  # so that one accepted here is not believed for ever
    end_below_forgets: bool = True  # an end below what was acknowledged here takes the belief away
    acknowledged_when_asked: bool = True  # an end is compared with what was acknowledged before it was asked for


AS_WRITTEN = Rules()


class Left(NamedTuple):
    """How often each thing may still happen."""

    sends: int = 0
    other_sends: int = 0  # with body B
    gets: int = 0
    releases: int = 1  # of L
    rivals: int = 0  # M is logged by somebody else
    rivals_here: int = 0  # M is sent through a gateway of this world
    kills: int = 0
    evictions: int = 0
    restores: int = 0
    tail_losses: int = 0
    forgettings: int = 0  # 250,000 rejections of others
    ends: int = 0  # of K's hold
    retirements: int = 0


class Shared(NamedTuple):
    """What the gateways share: log, decisions, database, and what is on its way to the log."""

    log: Log
    decided: int
    written: int
    left: Left
    in_flight: tuple[Body, ...] = ()  # requests for K that may still land
    told: frozenset[tuple[int, Status]] = frozenset()


class Sent(NamedTuple):
    """A request for K went to the log; landed, its acknowledgement is on its way here."""

    body: Body
    landed_at: int | None = None


class EndedUnknown(NamedTuple):
    """No acknowledgement came in time."""

    body: Body


class Accepted(NamedTuple):
    """Acknowledged, not decided yet. Watched: a repeat came and the end of requests is asked for."""

    body: Body
    offset: int
    watched: bool = False


class Decided(NamedTuple):
    """Known in full from a decision."""

    status: Status
    body: Body
    version: int


Record = Sent | EndedUnknown | Accepted | Decided  # never equal to one of another kind: lengths or types differ


class Ids(IntEnum):
    """What the set of ids says of K."""

    NONE = 0
    REJECTED = 1  # in the fold's two generations
    HELD = 2  # held units once


class Send(NamedTuple):
    """A POST that waits here, and those that joined it. `stood`: K stood in the log at the arrival of one of them."""

    body: Body
    stood: bool
    at_gate: bool = False  # else it reads the row
    end: int | None = None
    absent_at: int | None = None  # the progress at which there was no row


class Get(NamedTuple):
    """A GET that waits here."""

    stood: bool
    end: int | None = None
    absent_at: int | None = None


class Rival(NamedTuple):
    """M, sent through this gateway."""

    since_arrival: bool  # produced after the waiting send arrived
    landed_at: int | None = None


class Life(StrEnum):
    """Whether the process runs."""

    UP = "up"
    DOWN = "down"
    STARTING = "has read ids, not progress"  # by a weaker rule


class Gateway(NamedTuple):
    """The memory of one gateway process."""

    life: Life = Life.UP
    applied: int = 1
    record: Record | None = None
    ids: Ids = Ids.NONE
    floor: int = 0
    acknowledged: int = 0  # beyond what is applied, else 0
    send: Send | None = None
    get: Get | None = None
    disputing: tuple[Body, ...] = ()  # sends with another body than the one on its way, that wait for the decision
    rival: Rival | None = None
    told: int = 0  # the highest version told by this process
    cached_end: int = 0  # by a weaker rule


DOWN = Gateway(Life.DOWN, 0)


@dataclass(frozen=True)
class World:
    """A small world: what may happen in it, and by which rules. `begins` is decided and written."""

    name: str
    left: Left
    rules: Rules = AS_WRITTEN
    begins: Log = (Entry.L,)
    second_starts_at: int | None = None  # the progress that the second gateway has read, when it is an old one
    filter_always_hits: bool = False  # the worst of filters: each id seems to be remembered
    stale_ends: bool = False  # a deposed leader may name an old end

    @property
    def uses_rows(self) -> bool:
        """Whether anybody ever reads Postgres here."""
        return self.filter_always_hits or any((self.left.kills, self.left.evictions, self.left.gets))

    def first(self) -> tuple[Shared, Gateway, Gateway]:
        """One gateway has heard the beginning, the other was started after it."""
        so_far = len(self.begins)
        shared = Shared(self.begins, so_far, so_far, self.left)
        seen = row(self.begins, self.rules.fold, not self.rules.versions_by_status)
        record = Decided(*seen) if seen else None
        heard = Gateway(applied=so_far, record=record, ids=ids_after(self.begins, self.rules))
        return shared, heard, started(self.begins[: self.second_starts_at], self.rules)


class Moment(NamedTuple):
    """The world as one gateway stands in it: what its steps are computed from."""

    world: World
    shared: Shared
    gateway: Gateway

    @property
    def rules(self) -> Rules:
        """The rules of this world."""
        return self.world.rules

    @property
    def view(self) -> Fold:
        """The fold of what this gateway has applied."""
        return fold(self.shared.log[: self.gateway.applied], self.rules.fold)

    @property
    def decided(self) -> Fold:
        """The fold of what is decided."""
        return fold(self.shared.log[: self.shared.decided], self.rules.fold)

    @property
    def past(self) -> History:
        """What the decisions say of K."""
        return history(self.shared.log[: self.shared.decided], self.rules.fold)

    @property
    def gate(self) -> Gate:
        """Whether the last known state would refuse."""
        return Gate.SELLS if self.view.available else Gate.REFUSES

    def row(self) -> Row | None:
        """The row of K, unless it contradicts what is known here: a rejection of what held units is an old row."""
        seen = row(self.shared.log[: self.shared.written], self.rules.fold, not self.rules.versions_by_status)
        stale = seen and seen.status is Status.REJECTED and self.gateway.ids is Ids.HELD
        return None if stale and self.rules.rejected_never_replaces else seen

    def with_gateway(self, **changes: Any) -> "Moment":
        """The same with another memory of this gateway."""
        return self._replace(gateway=self.gateway._replace(**changes))

    def with_shared(self, **changes: Any) -> "Moment":
        """The same with another log or database."""
        return self._replace(shared=self.shared._replace(**changes))

    def spent(self, what: str) -> "Moment":
        """The same with one less of `what` left."""
        return self.with_shared(left=spent(self.shared.left, what))


def spent(left: Left, what: str) -> Left:
    """One less of `what`."""
    changes: Mapping[str, int] = {what: getattr(left, what) - 1}
    return left._replace(**changes)


def remembered(log: Log, rules: Rules) -> bool:
    """Whether K stands in the log, and not as a rejection that the fold has forgotten: a send must not be refused."""
    return history(log, rules.fold).bought is not None or fold(log, rules.fold).rejected is not None


def stands(log: Log, rules: Rules) -> bool:
    """Whether K stands in the log with an outcome, made or to be made: a GET must find it."""
    return history(log, rules.fold).offset is not None


def logged(log: Log) -> bool:
    """Whether any request for K is in the log."""
    return any(entry in BODY for entry in log)


def ids_after(log: Log, rules: Rules) -> Ids:
    """What the set of ids holds of K after this much of the log."""
    state = fold(log, rules.fold)
    bought = history(log, rules.fold).bought is not None
    if bought and (rules.keeps_retired_ids or not state.retired):
        return Ids.HELD
    return Ids.NONE if state.rejected is None else Ids.REJECTED


def kept(ids: Ids, rules: Rules) -> Ids:
    """What is left of the ids when the full record is gone."""
    keeps = {Ids.NONE: True, Ids.REJECTED: rules.keeps_rejected_ids, Ids.HELD: rules.keeps_reserved_ids}
    return ids if keeps[ids] else Ids.NONE


def started(log: Log, rules: Rules) -> Gateway:
    """A gateway that has just read ids and progress from Postgres, which has applied `log`."""
    return Gateway(applied=len(log), ids=kept(ids_after(log, rules), rules), floor=len(log))


def version_of(status: Status, before: Record | None, rules: Rules) -> int:
    """The version of a decision; `before` is what was known here (it must not matter)."""
    if rules.versions_by_status:
        return VERSION[status]
    return 1 + isinstance(before, Decided)
