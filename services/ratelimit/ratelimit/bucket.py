"""The limiter's rules on plain numbers: what `lua/limits.lua` does in Redis, word for word, for one process.

Pure: time is an argument, in integer microseconds. It is the model the script is tested against, and what a
gateway limits with while Redis is away.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from ratelimit.policy import Algorithm, Policy


class Cell(NamedTuple):
    """One policy applied to one caller: the key its use is kept under, and the policy."""

    key: str
    policy: Policy


class Outcome(NamedTuple):
    """The outcome of one request. `policy` is the one that refused longest, or of those that allowed, the tightest.

    It is None when no policy applied. `remaining` counts requests, `retry_us` is 0 when allowed.
    """

    allowed: bool
    policy: Policy | None
    remaining: int
    retry_us: int


class _TokenBucket:
    """GCRA, kept as a debt in units of 1/quota microsecond, so that no rate is ever rounded.

    Each request adds one window to the debt, each microsecond pays back `quota` of it.
    """

    __slots__ = ("debt", "kept", "now_us", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy, self.now_us, self.debt = policy, 0, 0
        self.kept = (0, 0)  # instant and debt of the last spending, as Redis keeps them

    def advance(self, now_us: int) -> None:
        at_us, debt = self.kept
        # A clock set back pays nothing, and must not lock anyone out until it has caught up.
        self.debt = max(0, debt - max(0, now_us - at_us) * self.policy.quota)
        self.now_us = now_us

    def wait_us(self) -> int:
        excess = self.debt + self.policy.window_us * (1 - self.policy.burst)
        return -(-excess // self.policy.quota) if excess > 0 else 0

    def spend(self) -> None:
        self.debt += self.policy.window_us
        self.kept = (self.now_us, self.debt)

    def remaining(self) -> int:
        return self.policy.burst - -(-self.debt // self.policy.window_us)


class _SlidingWindow:
    """The instants of the requests let through in the last window: exact, and never more than `quota` of them."""

    __slots__ = ("now_us", "past", "policy", "times_us")

    def __init__(self, policy: Policy) -> None:
        self.policy, self.now_us = policy, 0
        self.times_us: deque[int] = deque()
        self.past = 0  # so many of them are no longer in the window; dropped with the next spending

    def advance(self, now_us: int) -> None:
        self.now_us, self.past = now_us, 0
        window_us = self.policy.window_us
        # More than a window ahead: the clock was set back; such a caller must not wait for it to return.
        for at_us in self.times_us:
            if now_us - window_us < at_us <= now_us + window_us:
                break
            self.past += 1

    def wait_us(self) -> int:
        if self.remaining() > 0:
            return 0
        return self.times_us[self.past] + self.policy.window_us - self.now_us

    def spend(self) -> None:
        for _ in range(self.past):
            self.times_us.popleft()
        self.past = 0
        self.times_us.append(self.now_us)

    def remaining(self) -> int:
        return self.policy.quota - len(self.times_us) + self.past


class Buckets:
    """The use of many callers, at most `keys_max` of them: the one not seen for longest is forgotten first."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._states: OrderedDict[str, _TokenBucket | _SlidingWindow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def check(self, requests: Sequence[Sequence[Cell]], now_us: int) -> list[Outcome]:
        """Judge the requests of one instant in order. One that any policy refuses spends nothing anywhere."""
        return [self._check_one(cells, now_us) for cells in requests]

    def _check_one(self, cells: Sequence[Cell], now_us: int) -> Outcome:
        states = [self._state(cell, now_us) for cell in cells]
        if not states:
            return Outcome(True, None, 0, 0)
        longest = max(states, key=lambda state: state.wait_us())
        if retry_us := longest.wait_us():
            return Outcome(False, longest.policy, 0, retry_us)
        for state in states:
            state.spend()
        tightest = min(states, key=lambda state: state.remaining())
        return Outcome(True, tightest.policy, tightest.remaining(), 0)

    def _state(self, cell: Cell, now_us: int) -> _TokenBucket | _SlidingWindow:
        state = self._states.get(cell.key)
        if state is None:
            bucket = cell.policy.algorithm is Algorithm.TOKEN_BUCKET
            state = self._states[cell.key] = (_TokenBucket if bucket else _SlidingWindow)(cell.policy)
            if len(self._states) > self._keys_max:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(cell.key)
        state.advance(now_us)
        return state
