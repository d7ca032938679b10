"""What was seen of a round at the door, by whom: buyers (each send), gateways' witnesses, a watcher beside Redis.

Pure data, and what follows from it without judging. All instants are ms of the machine's monotonic clock.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from replay.rules.s11_limiter import Span

UNANSWERED = 0
ACCEPTED = frozenset({201, 202})
STATE_MS_MAX = 30_000.0  # no call takes so long
WITNESS_QUIET_MS = 2_000.0  # it tells something each second; later than this it was dead, or its machine was busy


class Send(NamedTuple):
    """One POST. `body` tells bodies of one key apart; `located` is the purchase its answer named in Location."""

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

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer, empty if it is no object."""
        try:
            found = json.loads(self.raw)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """The kind of problem it was answered with, or nothing."""
        return str(self.content.get("type", "")).rpartition("/")[2] if self.status >= 400 else ""

    @property
    def accepted(self) -> bool:
        """Whether it was told that its purchase is in the log, be it turned down there."""
        return self.status in ACCEPTED or (self.status == 409 and bool(self.located))

    @property
    def span(self) -> Span:
        """When it was under way."""
        return Span(self.sent_ms, self.answered_ms)


class Look(NamedTuple):
    """One GET of a purchase."""

    purchase_id: str
    gateway: str
    sent_ms: float
    answered_ms: float
    status: int


class Call(NamedTuple):
    """A line of a witness: this call came to this. `stamp` is empty if Redis did not answer it."""

    pid: int
    began_ms: float
    ended_ms: float
    stamp: str
    vouched: bool


class State(NamedTuple):
    """What a gateway went by between two instants, at most."""

    from_ms: float
    to_ms: float
    certain: Span  # and for certain in here
    local: bool
    vouched: bool
    pid: int


class Evicted(NamedTuple):
    """A key that Redis dropped for want of room, within these instants."""

    from_ms: float
    to_ms: float
    key: str


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
    looks: list[Look]
    calls: dict[str, list[Call]]
    memory: Memory
    claims: dict[str, str] = field(default_factory=dict)  # purchase -> its claim in Redis, at the end
    stock: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # product -> (ms, available from then on)
    settled_ms: float = 0.0  # nothing was broken any more, and all was quiet
    bought: dict[str, str] = field(default_factory=dict)  # purchase -> the body in its row

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

    def during(self, gateway: str, from_ms: float, to_ms: float) -> list[State]:
        """The states that a gateway may have been in at some instant of these."""
        states, begins = self.states.get(gateway, []), self._begins.get(gateway, [])
        first, end = bisect_left(begins, from_ms - STATE_MS_MAX), bisect_right(begins, to_ms)
        return [state for state in states[first:end] if state.to_ms >= from_ms]

    def vouched(self, send: Send | Look) -> bool:
        """Whether for certain the gateway believed Redis whenever it may have judged this."""
        found = self.during(send.gateway, send.sent_ms, send.answered_ms)
        return bool(found) and all(state.vouched for state in found)

    def doubted(self, send: Send) -> bool:
        """Whether for certain it did not."""
        found = self.during(send.gateway, send.sent_ms, send.answered_ms)
        return bool(found) and not any(state.vouched for state in found)

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

    def lives(self, gateway: str, from_ms: float, to_ms: float) -> bool:
        """Whether one and the same process was the gateway all the time."""
        return len({state.pid for state in self.during(gateway, from_ms, to_ms)}) == 1

    def forgotten(self, from_ms: float, to_ms: float) -> bool:
        """Whether Redis may have lost a claim between these instants."""
        gone = [*self.memory.lost, *(Span(one.from_ms, one.to_ms) for one in self.memory.evicted)]
        return any(overlap(span, Span(from_ms, to_ms)) for span in gone)


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
        yield State(call.began_ms, end, Span(call.ended_ms, end), not call.stamp, call.vouched, call.pid)


def read_calls(lines: Iterable[bytes]) -> Iterator[Call]:
    """A witness' lines; what a dying process left half is none."""
    for line in lines:
        try:
            yield Call(*json.loads(line))
        except (ValueError, TypeError):
            continue
