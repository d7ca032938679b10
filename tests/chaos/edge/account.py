"""What was seen of a round at the edge, by whom: buyers (each send and look), gateways' witnesses, a watcher beside
Redis, and the log itself.

Pure data, and what follows from it without judging. All instants are ms of the machine's monotonic clock.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from replay.rules.s11_limiter import Span

UNANSWERED = 0
ACCEPTED = frozenset({201, 202})
MAY_BE_LOGGED = frozenset({"outcome-unknown", "internal-error"})
STATE_MS_MAX = 30_000.0  # no call takes so long
READABLE_MS_MAX = 250.0
WITNESS_QUIET_MS = 2_000.0  # it tells something each second; later than this it was dead, or its machine was busy


class Send(NamedTuple):
    """One POST. `key` is of one buyer and product; `body` tells bodies of one key apart.

    `located` is the purchase that its answer named in Location; `waited`: it asked to hear the decision.
    """

    key: str
    buyer: str
    address: str
    gateway: str
    body: str
    product_id: str
    sent_ms: float
    answered_ms: float
    status: int
    raw: bytes = b""
    located: str = ""
    replayed: bool = False
    waited: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer, empty if it is no object."""
        return content(self.raw)

    @property
    def kind(self) -> str:
        """The kind of problem it was answered with, or nothing."""
        return str(self.content.get("type", "")).rpartition("/")[2] if self.status >= 400 else ""

    @property
    def accepted(self) -> bool:
        """Whether it was told that its purchase is in the log, be it turned down there."""
        return self.status in ACCEPTED or (self.status == 409 and bool(self.located))

    @property
    def unsettled(self) -> bool:
        """Whether its answer, or none, leaves open what became of it."""
        return self.status == UNANSWERED or self.kind in MAY_BE_LOGGED

    @property
    def purchase(self) -> str:
        """The purchase that its answer names, or nothing."""
        return self.located or str(self.content.get("purchase_id") or "")

    @property
    def span(self) -> Span:
        """When it was under way."""
        return Span(self.sent_ms, self.answered_ms)


class Look(NamedTuple):
    """One GET of a purchase; `version` and `state` are what it showed, if it showed something."""

    purchase_id: str
    gateway: str
    sent_ms: float
    answered_ms: float
    status: int
    version: int = 0
    state: str = ""


class Call(NamedTuple):
    """A line of a witness: this batch of a gateway was judged by its own share (`local`), or by Redis."""

    pid: int
    began_ms: float
    ended_ms: float
    local: bool


class State(NamedTuple):
    """By whose limits a gateway went between two instants, at most."""

    from_ms: float
    to_ms: float
    certain: Span  # and for certain in here
    local: bool
    pid: int


class Evicted(NamedTuple):
    """A key that Redis dropped for want of room, within these instants."""

    from_ms: float
    to_ms: float
    key: str


class Hurt(NamedTuple):
    """Something (`redis`, `views`, `gateway`) was struck, and healed."""

    what: str
    from_ms: float
    to_ms: float


class Fate(NamedTuple):
    """What the log holds of a purchase: when each of its requests was appended, and its outcome.

    `body` is the one that was decided; `status` and `version` are those of the row at the end.
    """

    appended_ms: list[float]
    decided_ms: float | None = None
    body: str = ""
    outcome: str = ""
    reason: str = ""
    status: str = ""
    version: int = 0

    @property
    def readable_ms(self) -> float:
        """From when on everybody who asks can see it in the log."""
        return readable(self.appended_ms[0], self.decided_ms) if self.appended_ms else inf


NOT_LOGGED = Fate([])


class Stocked(NamedTuple):
    """What was available behind a request: it was appended, and could be read."""

    appended_ms: float
    readable_ms: float
    available: int


@dataclass
class Memory:
    """What became of Redis' memory, seen from beside it. `lost`: all of it, or what was written last.

    `away`: from the last answer to the first one after it.
    """

    lost: list[Span] = field(default_factory=list)
    away: list[Span] = field(default_factory=list)
    evicted: list[Evicted] = field(default_factory=list)
    looks: int = 0


@dataclass
class Account:
    """All that is known of a round. `limits` is the setting, which `gateways` share."""

    limits: str
    gateways: int
    sends: list[Send]
    looks: list[Look] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    ids: dict[str, str] = field(default_factory=dict)  # key -> its purchase, whether anybody was told of it or not
    names: dict[str, str] = field(default_factory=dict)  # buyer -> the pseudonym in Redis' keys
    fates: dict[str, Fate] = field(default_factory=dict)  # purchase -> what is in the log
    stock: dict[str, list[Stocked]] = field(default_factory=dict)  # by product, in the order of the log
    hurt: list[Hurt] = field(default_factory=list)

    @cached_property
    def by_key(self) -> dict[str, list[Send]]:
        """The sends of each key, in the order in which they began."""
        found: defaultdict[str, list[Send]] = defaultdict(list)
        for send in sorted(self.sends, key=lambda one: one.sent_ms):
            found[send.key].append(send)
        return dict(found)

    @cached_property
    def states(self) -> dict[str, list[State]]:
        """What each gateway went by, in the order in which it began; a call that took long is told late."""
        return {gateway: sorted(states(calls)) for gateway, calls in self.calls.items()}

    @cached_property
    def _begins(self) -> dict[str, list[float]]:
        return {gateway: [state.from_ms for state in found] for gateway, found in self.states.items()}

    @cached_property
    def _first(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for calls in self.calls.values():
            for call in calls:
                found[call.pid] = min(call.began_ms, found.get(call.pid, call.began_ms))
        return found

    def fate(self, key: str) -> Fate:
        """What became of what a key stands for."""
        return self.fates.get(self.ids.get(key, ""), NOT_LOGGED)

    def during(self, gateway: str, from_ms: float, to_ms: float) -> list[State]:
        """The states that a gateway may have been in at some instant of these."""
        states, begins = self.states.get(gateway, []), self._begins.get(gateway, [])
        first, end = bisect_left(begins, from_ms - STATE_MS_MAX), bisect_right(begins, to_ms)
        return [state for state in states[first:end] if state.to_ms >= from_ms]

    def processes(self, one: Send | Look) -> set[int]:
        """The processes that may have answered this."""
        return {state.pid for state in self.during(one.gateway, one.sent_ms, one.answered_ms)}

    def process(self, one: Send | Look) -> int:
        """The one process that answered this for certain; 0: it is not known."""
        found = self.processes(one)
        return found.pop() if len(found) == 1 else 0

    def since(self, pid: int) -> float:
        """When a process is known to have served for the first time."""
        return self._first[pid]

    def by_redis(self, send: Send) -> bool:
        """Whether for certain Redis judged this, and answers for it since."""
        found = self.during(send.gateway, send.sent_ms, send.answered_ms)
        away = any(overlap(span, send.span) for span in self.memory.away)
        return bool(found) and not away and not any(state.local for state in found)

    def by_itself(self, send: Send) -> int:
        """The process that for certain judged this without Redis; 0: none."""
        for state in self.during(send.gateway, send.sent_ms, send.answered_ms):
            inside = state.certain.from_ms <= send.sent_ms and send.answered_ms <= state.certain.to_ms
            if state.local and inside:
                return state.pid
        return 0


def readable(appended_ms: float, decided_ms: float | None) -> float:
    """By when a request could be read for certain: its decision is stamped later than that.

    A broker stamps a record, writes it and only then shows it. A thread that is off its core in between makes that some
    ms: an end of 27 ms after the stamp that did not cover the record was seen on two busy cores.
    """
    return min(appended_ms + READABLE_MS_MAX, inf if decided_ms is None else decided_ms)


def content(raw: bytes) -> dict[str, Any]:
    """A JSON object, empty if it is none."""
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, account: Account) -> None:
    """As JSON, so that a round can be judged again."""
    path.write_bytes(msgspec.json.encode(account))


def read(path: Path) -> Account:
    """Read it back; raises msgspec.DecodeError where it is none."""
    return msgspec.json.decode(path.read_bytes(), type=Account)


def overlap(one: Span, other: Span) -> bool:
    """Whether they share an instant."""
    return one.from_ms <= other.to_ms and other.from_ms <= one.to_ms


def states(calls: Sequence[Call]) -> Iterator[State]:
    """A call's result holds for every other one until a line says otherwise; the last line before a death ends soon."""
    for at, call in enumerate(calls):
        after = calls[at + 1] if at + 1 < len(calls) else None
        quiet = call.ended_ms + WITNESS_QUIET_MS
        end = quiet if after is None else min(quiet, after.ended_ms)
        yield State(call.began_ms, end, Span(call.ended_ms, end), call.local, call.pid)


def read_calls(lines: Iterable[bytes]) -> Iterator[Call]:
    """A witness' lines; what a dying process left half is none."""
    for line in lines:
        try:
            yield Call(*json.loads(line))
        except (ValueError, TypeError):
            continue
