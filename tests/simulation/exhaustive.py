"""Every interleaving of a world small enough to be walked through: breadth first, over shipped `PartitionProcessor`s.

`python -m tests.simulation.exhaustive` walks the small worlds below, with equal and with different rules. A worker that
dies needs no step of its own: it is one that is never chosen again, while its records may still land or be lost.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from inventory.domain import decide
from inventory.effects import Acknowledge, Effect, InFlightRecord, LoadTable, Produce, ReadRequests, Stop
from inventory.loading import Loaded, Record
from inventory.protocol import PartitionProcessor
from inventory.table import REJECTED_GENERATION, StockTable
from stampede_schemas.codec import encode_requests
from stampede_schemas.identifiers import Millis, WriterEpoch
from stampede_schemas.requests import AnyRequest
from stampede_schemas.topics import REQUESTS
from tests.simulation.other_rules import thrifty
from tests.simulation.reference import Reference, Violation
from tests.simulation.world import SHIPPED, Variant
from tests.support.builders.requests import listing, purchase
from tests.support.fakes.log import TOPIC_IDS, MemoryLog, run_load
from tests.support.fakes.partition import settle

PIPELINE_DEPTH = 2  # deliveries a worker takes before the first of them is reported


@dataclass(frozen=True)
class SmallWorld:
    """How large it is. `late` workers load, decide everything and freeze: their records land some time, or never.

    The product is listed already; `purchases` are what is left to decide.
    """

    name: str
    purchases: int
    workers: int
    loads: int  # of each worker, the first one included
    losses: int  # of records on their way, over all workers
    late: int = 0  # so many, the last ones
    stock: int = 1


WORLDS = (
    SmallWorld("2 requests, 2 workers, a loss", 2, 2, loads=2, losses=1),
    SmallWorld("3 requests, 2 workers, 2 losses", 3, 2, loads=2, losses=2),
    SmallWorld("3 requests, 3 workers, 2 of them only land late", 3, 3, loads=2, losses=0, late=2),
    SmallWorld("2 requests, 3 active workers", 2, 3, loads=2, losses=0),
)


class Actor(NamedTuple):
    """A worker: `partition` is never changed in place."""

    partition: PartitionProcessor
    pipe: tuple[InFlightRecord, ...] = ()
    reports: tuple[tuple[int, int | None], ...] = ()
    loads: int = 0
    position: int = 0


class State(NamedTuple):
    """The whole world at one moment."""

    decisions: tuple[bytes, ...]
    actors: tuple[Actor, ...]
    losses: int


class Walk:
    """One breadth-first walk through a small world under a variant of the protocol."""

    def __init__(self, world: SmallWorld, variant: Variant, different_rules: bool) -> None:
        self.world, self.variant, self.different = world, variant, different_rules
        log = MemoryLog()
        asked: list[AnyRequest] = [listing(stock=world.stock)]
        asked += [purchase(f"b{n}", ("ann", "bob", "cid")[n]) for n in range(world.purchases)]
        for request in asked:
            log.append(REQUESTS.name, encode_requests([request]), 1_000)
        self.requests = log.requests
        settle(log, variant.partition(0, TOPIC_IDS, lambda: WriterEpoch("old"), decide, lambda *_: False), 1)
        self.listed = log.decisions[0].value or b""
        self._loaded: dict[tuple[bytes, ...], Loaded] = {}
        self._facts: dict[tuple[bytes, ...], int] = {}

    def run(self, states_max: int = 2_000_000) -> int:
        """Visit every state; returns how many there are. Raises Violation with the way to it."""
        self._judge((self.listed,))
        first = State((self.listed,), tuple(self._actor(n) for n in range(self.world.workers)), self.world.losses)
        seen = {self._key(first): None}
        queue: deque[tuple[State, tuple[str, ...]]] = deque([(first, ())])
        while queue:
            state, way = queue.popleft()
            for step, after in self._steps(state, way):
                key = self._key(after)
                if key not in seen:
                    seen[key] = None
                    queue.append((after, (*way, step)))
            if len(seen) > states_max:
                raise MemoryError(f"more than {states_max} states")
        return len(seen)

    def _actor(self, number: int) -> Actor:
        rules = thrifty if self.different and number % 2 else decide
        partition = self.variant.partition(0, TOPIC_IDS, lambda: WriterEpoch(""), rules, lambda *_: False)
        partition.assigned()
        return Actor(partition, position=1)

    def _steps(self, state: State, way: tuple[str, ...]) -> Iterator[tuple[str, State]]:
        for n, actor in enumerate(state.actors):
            for name, step in self._possible(state, n, actor):
                try:
                    yield f"{name} {n}", step()
                except Violation as violation:
                    steps = ", ".join((*way, f"{name} {n}"))
                    raise Violation(violation.rule, f"{violation.what} after: {steps}") from None

    def _possible(self, state: State, n: int, actor: Actor) -> Iterator[tuple[str, Callable[[], State]]]:
        partition = actor.partition
        late = n >= self.world.workers - self.world.late
        if actor.pipe:
            yield "land", lambda: self._land(state, n, actor)
            if state.losses:
                yield "lose", lambda: self._lose(state, n, actor)
        if partition.phase == "stopped" or (late and actor.position == len(self.requests)):
            return
        if partition.phase == "loading" and actor.loads < (1 if late else self.world.loads):
            yield "load", lambda: self._load(state, n, actor)
        if actor.reports:
            yield "report", lambda: self._report(state, n, actor)
        room = len(partition._in_flight) < PIPELINE_DEPTH or late
        if partition.phase == "deciding" and actor.position < len(self.requests) and room:
            yield "deliver", lambda: self._deliver(state, n, actor, len(self.requests) if late else 1)

    # ---- steps

    def _land(self, state: State, n: int, actor: Actor) -> State:
        record, *rest = actor.pipe
        decisions = (*state.decisions, record.value)
        self._judge(decisions)
        report = (record.source_offset, len(state.decisions))
        after = actor._replace(pipe=tuple(rest), reports=(*actor.reports, report))
        return self._with(state, n, after)._replace(decisions=decisions)

    def _lose(self, state: State, n: int, actor: Actor) -> State:
        """The record is gone; its writer will hear of it, and stops then. Those behind it may land."""
        record, *rest = actor.pipe
        after = actor._replace(pipe=tuple(rest), reports=(*actor.reports, (record.source_offset, None)))
        return self._with(state, n, after)._replace(losses=state.losses - 1)

    def _report(self, state: State, n: int, actor: Actor) -> State:
        (source, landed), *rest = actor.reports
        error = "lost" if landed is None else None
        return self._tell(state, n, actor._replace(reports=tuple(rest)), lambda p: p.reported(source, landed, error))

    def _deliver(self, state: State, n: int, actor: Actor, count: int) -> State:
        records = self.requests[actor.position : actor.position + count]
        after = actor._replace(position=actor.position + len(records))
        return self._tell(state, n, after, lambda p: [effect for r in records for effect in p.delivered(r)])

    def _load(self, state: State, n: int, actor: Actor) -> State:
        if state.decisions not in self._loaded:
            self._loaded[state.decisions] = self._fold(state.decisions)
        known = self._loaded[state.decisions]
        loaded = Loaded(_copied(known.table), known.progress, known.fencing_offset, -1)
        after = actor._replace(loads=actor.loads + 1)
        return self._tell(state, n, after, lambda p: p.loaded(p._attempt, loaded, actor.loads * 1_000.0))

    # ---- what follows from a step

    def _tell(self, state: State, n: int, actor: Actor, event: Callable[[PartitionProcessor], list[Effect]]) -> State:
        partition = _cloned(actor.partition)
        partition._new_epoch = lambda: WriterEpoch(f"{n}.{actor.loads}")
        effects = deque(event(partition))
        pipe = actor.pipe
        while effects:
            effect = effects.popleft()
            match effect:
                case Produce(records):
                    pipe = (*pipe, *records)
                case ReadRequests(attempt, start, end):
                    effects.extend(partition.requests_read(attempt, self.requests[start:end]))
                case Acknowledge(source_offset) if source_offset > self._facts[state.decisions]:
                    raise Violation("S3", f"request {source_offset} is acknowledged without an answer that counts")
                case Acknowledge() | LoadTable() | Stop():
                    pass
                case _:
                    raise AssertionError(effect)
        return self._with(state, n, actor._replace(partition=partition, pipe=pipe))

    def _with(self, state: State, n: int, actor: Actor) -> State:
        return state._replace(actors=(*state.actors[:n], actor, *state.actors[n + 1 :]))

    def _judge(self, decisions: tuple[bytes, ...]) -> None:
        """Every counting decision was made on exactly the counting ones before it."""
        if decisions in self._facts:
            return
        reference = Reference(self.requests, {}, self.different, self.variant.rule, REJECTED_GENERATION)
        for offset, value in enumerate(decisions):
            reference.landed(offset, value)
        self._facts[decisions] = reference.answered

    def _fold(self, decisions: tuple[bytes, ...]) -> Loaded:
        log = MemoryLog()
        log.requests.extend(self.requests)
        log.decisions.extend(Record(offset, value, Millis(0)) for offset, value in enumerate(decisions))
        return run_load(log, 0, reader_from=self.variant.reader)

    def _key(self, state: State) -> tuple[object, ...]:
        """What tells two states apart; tables follow from the log and what is in flight, so they need not be in it."""
        return (state.decisions, state.losses, *map(_actor_key, state.actors))


def _actor_key(actor: Actor) -> tuple[object, ...]:
    p = actor.partition
    return (
        p.phase, p._writer_epoch, p._fencing_offset, p._next_source, p._next_decision, p._highest,
        p._batches, p._taken_over, p.confirmed, tuple(r.offset for r in p._waiting),
        tuple((f.source_offset, f.expected) for f in p._in_flight), tuple(f.value for f in actor.pipe), actor.reports,
        actor.loads, actor.position,
    )  # fmt: skip


def _cloned(partition: PartitionProcessor) -> PartitionProcessor:
    clone = object.__new__(type(partition))
    clone.__dict__.update(partition.__dict__)
    clone.table = _copied(partition.table)
    clone._waiting = partition._waiting.copy()
    clone._in_flight = partition._in_flight.copy()
    clone._takeovers = deque()
    return clone


def _copied(table: StockTable) -> StockTable:
    products = {
        name: replace(product, held_by=dict(product.held_by), answered=dict(product.answered))
        for name, product in table.products.items()
    }
    purchases = {name: replace(held) for name, held in table.purchases.items()}
    rejected, rejected_before = dict(table.rejected), dict(table.rejected_before)
    return StockTable(table.partition, products, purchases, rejected, rejected_before, table.generation)


def main() -> int:
    """Walk every small world with both sets of rules, and print how large each was."""
    broken = 0
    for world in WORLDS:
        for different in (False, True):
            began = time.perf_counter()
            try:
                said = f"{Walk(world, SHIPPED, different).run():,} states, no violation"
            except Violation as violation:
                broken += 1
                said = f"BROKEN: {violation}"
            rules = "different rules" if different else "equal rules"
            print(f"{world.name}, {rules}: {said} ({time.perf_counter() - began:.1f} s)", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
