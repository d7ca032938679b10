"""Gate model: every interleaving of a small world, breadth first.

A state is the shared part and two gateways. Each part is kept once and known by its number, so that a state is one
integer, and the moves of a gateway are computed once for each pair of shared part and memory. The two gateways obey the
same rules, so a state and its mirror image are one.
"""

import itertools
import time
from collections.abc import Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

from tests.simulation.gate_around import (
    after_tail_lost,
    changes,
    rejections_flood,
    tail_lost,
    waits_for_nothing,
)
from tests.simulation.gate_claims import Broken
from tests.simulation.gate_get import get_moves
from tests.simulation.gate_life import life_moves, start_moves
from tests.simulation.gate_moves import Move
from tests.simulation.gate_post import post_moves
from tests.simulation.gate_world import Gateway, Life, Moment, Shared, World

BITS = 18  # of a gateway's number; a state is: shared part, one gateway, the other
MASK = (1 << BITS) - 1
PAIR_MASK = (1 << 2 * BITS) - 1
STATES_MAX = 5_000_000

Part = TypeVar("Part", bound=Hashable)


class Numbered(Generic[Part]):
    """Keeps each part once, and numbers it."""

    def __init__(self, shift: int) -> None:
        self._numbers: dict[Part, int] = {}
        self._parts: list[Part] = []
        self._shift = shift

    def number(self, part: Part) -> int:
        """The number of this part, shifted to its place in a state."""
        number = self._numbers.get(part)
        if number is None:
            number = self._numbers[part] = len(self._parts) << self._shift
            self._parts.append(part)
        return number

    def part(self, number: int) -> Part:
        """The part with this number."""
        return self._parts[number >> self._shift]

    def __len__(self) -> int:
        return len(self._parts)


class Verdict(NamedTuple):
    """What a walk found: the first broken claim with a shortest way to it, or neither after all states."""

    states: int
    complete: bool
    seconds: float
    broken: Broken | None = None
    way: tuple[str, ...] = ()


class Walk:
    """One walk through a small world, up to the first broken claim."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._shared = Numbered[Shared](2 * BITS)
        self._gateways = Numbered[Gateway](0)
        self._moves: dict[int, list[int]] = {}  # by shared part and gateway: what both become
        self._changes: dict[int, list[int]] = {}  # by shared part: what it becomes
        self._broken: tuple[int | None, str, Broken] | None = None  # by which gateway, its step, the claim
        self.labels: set[str] = set()  # of all moves of gateways
        self._joint = bool(world.left.tail_losses or world.left.forgettings)

    def run(self, states_max: int = STATES_MAX) -> Verdict:
        """Visit every state."""
        began = time.perf_counter()
        shared, one, two = self.world.first()
        first = _state(self._shared.number(shared), self._gateways.number(one), self._gateways.number(two))
        came_from = {first: first}
        frontier = [first]
        while frontier and len(came_from) < states_max:
            reached = []
            for state in frontier:
                for after in self._after(state):
                    if after not in came_from:
                        came_from[after] = state
                        reached.append(after)
                if self._broken is not None:
                    seconds = time.perf_counter() - began
                    return Verdict(len(came_from), False, seconds, self._broken[2], self._way(came_from, state))
            frontier = reached
        assert len(self._gateways) <= MASK
        return Verdict(len(came_from), not frontier, time.perf_counter() - began)

    def _after(self, state: int) -> list[int]:
        """The states that are one step away."""
        pair = state & PAIR_MASK
        shared, one, two = state ^ pair, pair >> BITS, pair & MASK
        moves_of_one = self._moves.get(shared | one) or self._moves_of(shared, one)
        moves_of_two = self._moves.get(shared | two) or self._moves_of(shared, two)
        after = [shared | pair for shared in self._changes.get(shared) or self._changes_of(shared)]
        for moves, still in ((moves_of_one, two), (moves_of_two, one)):
            for move in moves:
                gateway = move & MASK
                after.append(move ^ gateway | (gateway << BITS | still if gateway < still else still << BITS | gateway))
        if self._joint:
            after += [_state(*numbers) for _, numbers in self._joint_changes(shared, one, two)]
        return after

    def _moves_of(self, shared: int, gateway: int) -> list[int]:
        known = self._moves[shared | gateway] = [shared | gateway]  # standing still, so that it is never empty
        for move in self._moves_from(shared, gateway):
            self.labels.add(move.label)
            known.append(self._shared.number(move.shared) | self._gateways.number(move.gateway))
            if move.broken is not None and self._broken is None:
                self._broken = (gateway, move.label, move.broken)
        return known

    def _moves_from(self, shared: int, gateway: int) -> Iterator[Move]:
        at = Moment(self.world, self._shared.part(shared), self._gateways.part(gateway))
        if at.gateway.life is not Life.UP:
            yield from start_moves(at)
            return
        yield from life_moves(at)
        yield from post_moves(at)
        yield from get_moves(at)

    def _changes_of(self, shared: int) -> list[int]:
        known = self._changes[shared] = [shared]
        for change in changes(self.world, self._shared.part(shared)):
            known.append(self._shared.number(change.shared))
            if change.broken is not None and self._broken is None:
                self._broken = (None, change.label, change.broken)
        return known

    def _joint_changes(self, shared: int, one: int, two: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Those that touch both gateways."""
        common, gateways = self._shared.part(shared), (self._gateways.part(one), self._gateways.part(two))
        if common.left.forgettings and all(waits_for_nothing(gateway) for gateway in gateways):
            change = rejections_flood(common)
            yield change.label, (self._shared.number(change.shared), one, two)
        if common.left.tail_losses and common.decided < len(common.log):
            change = tail_lost(common)
            one, two = (
                self._gateways.number(after_tail_lost(gateway, change.shared.log, self.world.rules))
                for gateway in gateways
            )
            yield change.label, (self._shared.number(change.shared), one, two)

    # ---- the way to a state, in words

    def _way(self, came_from: dict[int, int], last: int) -> tuple[str, ...]:
        """The steps from the first state to `last` and the one that broke a claim there."""
        states = [last]
        while came_from[states[-1]] != states[-1]:
            states.append(came_from[states[-1]])
        names, steps = ("gateway 1", "gateway 2"), []
        for before, after in itertools.pairwise(reversed(states)):
            step, names = self._step(before, after, names)
            steps.append(step)
        assert self._broken is not None
        gateway, label, _ = self._broken
        if gateway is None:
            return (*steps, label)
        return (*steps, f"{names[gateway != last >> BITS & MASK]}: {label}")

    def _step(self, before: int, after: int, names: tuple[str, str]) -> tuple[str, tuple[str, str]]:
        """One step of the way, and the names of both gateways in the order of the state that it leads to."""
        pair = before & PAIR_MASK
        shared, one, two = before ^ pair, pair >> BITS, pair & MASK
        for change in changes(self.world, self._shared.part(shared)):
            if self._shared.number(change.shared) | pair == after:
                return change.label, names
        for gateway, still, (name, other) in ((one, two, names), (two, one, names[::-1])):
            for move in self._moves_from(shared, gateway):
                number = self._gateways.number(move.gateway)
                if _state(self._shared.number(move.shared), number, still) == after:
                    placed = (name, other) if number < still else (other, name)
                    return f"{name}: {move.label}", placed
        for label, numbers in self._joint_changes(shared, one, two):
            if _state(*numbers) == after:
                return label, names if numbers[1] <= numbers[2] else names[::-1]
        raise AssertionError("no step leads there")


def _state(shared: int, one: int, two: int) -> int:
    return shared | (one << BITS | two if one < two else two << BITS | one)
