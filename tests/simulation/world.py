"""A small world for `inventory.protocol.Partition`: workers, a group, a stream and a broker that may all misbehave.

Everything that happens is a step `(verb, slot, amount)`, so that a history is a list and can be shortened. The world
draws nothing itself, knows no clock but its own, and only the shipped code decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from eventlog.reader import CountingReader, LogBroken, Progress
from inventory import effects
from inventory.domain import FoldBroken, decide
from inventory.effects import Effect
from inventory.loading import load
from inventory.protocol import PartitionProcessor, Rules
from order_writer.saga.orders import react
from stampede_schemas.identifiers import WriterEpoch
from stampede_schemas.topics import DECISIONS, REQUESTS, STOCK_SNAPSHOTS
from tests.simulation import book
from tests.simulation.book import Book, React
from tests.simulation.other_rules import forgetful, thrifty
from tests.simulation.plan import SLOTS, Plan, Step
from tests.simulation.reference import Counts, Reference, Violation, counts
from tests.simulation.worker import Worker
from tests.support.fakes.log import TOPIC_IDS, MemoryLog

Follower = Callable[[Progress], CountingReader]


@dataclass(frozen=True)
class Variant:
    """What is simulated: the shipped classes, or one of them broken. `rule` is what the reference believes."""

    name: str = "shipped"
    partition: type[PartitionProcessor] = PartitionProcessor
    reader: Follower = CountingReader  # in the workers' loads
    follower: Follower = CountingReader  # in one reader elsewhere
    rule: Counts = counts
    rules: Rules = decide
    react: React = react
    remembers: int = 0  # so many rejections more in a generation than it should hold
    book: type[Book] = Book


SHIPPED = Variant()


class World:
    """The log, the workers and the group; `do` takes a step and says whether it was possible."""

    def __init__(self, plan: Plan, variant: Variant = SHIPPED) -> None:
        self.plan, self.variant = plan, variant
        self.log = MemoryLog()
        self.dead_letters: dict[tuple[int, int], bytes] = {}
        self.reference = Reference(
            self.log.requests, self.dead_letters, any(plan.thrifty), variant.rule, plan.rejected_generation
        )
        self.now_s = 0.0
        self.pace_s = plan.seconds_per_step
        self.committed = 0
        self.appended = 0
        self.loads = 0
        self.faults = 0  # delivery errors so far: only they excuse a stop
        self.slots = [self._worker(slot) for slot in range(SLOTS)]
        self.zombies: list[Worker] = []
        self.book = variant.book(self.log, variant.react, variant.reader, plan.free) if plan.orders else None
        self._verbs: dict[str, Callable[[Worker, int], bool]] = {
            name: getattr(self, f"_{name}") for name in WORKERS_NEED
        }
        for name in book.NEEDS if self.book else ():
            self._verbs[name] = self._written_by(getattr(self.book, name))
        self._effects: dict[type, Callable[[Worker, Any], None]] = {
            effects.LoadTable: self._begin_load,
            effects.ReadRequests: lambda w, e: w.reads.append((e.attempt, e.start, e.end)),
            effects.SendDeadLetters: lambda w, e: w.dead_letters.append((e.attempt, e.dead_letters)),
            effects.Produce: lambda w, e: w.pipe.extend((record, False) for record in e.records),
            effects.Acknowledge: self._acknowledge,
            effects.WriteParts: self._pack,
            effects.WriteCommit: lambda w, e: w.writes.append(("", [e.value], [])),
            effects.Stop: self._stopped,
        }
        self.step_no = 0

    def chances(self, slot: int) -> int:
        """What a worker could do now, as bits of `NEEDS`. A step whose bit is not set would do nothing."""
        worker = self.slots[slot]
        bits = (
            APPEND * (self.appended < len(self.plan.values))
            | PIPE * bool(worker.pipe)
            | WRITES * bool(worker.writes)
            | ZOMBIES * bool(self.zombies)
        )
        if self.book:
            bits |= self.book.chances()
        if not worker.alive:
            return bits | DEAD
        bits |= ALIVE | REPORTS * bool(worker.reports) | LOADINGS * bool(worker.loadings)
        bits |= READS * bool(worker.reads) | DEAD_LETTERS * bool(worker.dead_letters) | ACKED * (worker.acked >= 0)
        if worker.partition.phase != "idle":
            bits |= OWNER | STREAM * (worker.position < len(self.log.requests))
        return bits

    def do(self, step: Step) -> bool:
        """Take one step. Raises Violation, also for a worker that sees a broken log where none is."""
        verb, slot, amount = step
        worker = self.slots[slot]
        if not worker.alive and verb not in OF_THE_DEAD:
            return False
        try:
            done = self._verbs[verb](worker, amount)
        except (LogBroken, FoldBroken) as broken:
            raise Violation("S14", f"a worker finds the log broken: {broken}") from broken
        except (AssertionError, LookupError) as broken:
            raise Violation("crash", f"{type(broken).__name__}: {broken}") from broken
        if done:
            self.now_s += self.pace_s
            self.step_no += 1
        return done

    def _written_by(self, step: Callable[[int], bool]) -> Callable[[Worker, int], bool]:
        return lambda _worker, amount: step(amount)

    # ---- clients and the group

    def _append(self, worker: Worker, amount: int) -> bool:
        values = self.plan.values[self.appended : self.appended + amount]
        for value in values:
            self.log.append(REQUESTS.name, value, 1_000 + self.step_no)
        self.appended += len(values)
        return bool(values)

    def _start(self, worker: Worker, amount: int) -> bool:
        """The supervisor starts a dead worker again; what the dead one had on its way may land yet."""
        if worker.alive:
            return False
        if worker.pipe or worker.writes:
            self.zombies.append(worker)
        slot = self.slots.index(worker)
        self.slots[slot] = self._worker(slot)
        return True

    def _assign(self, worker: Worker, amount: int) -> bool:
        """The group gives the partition to this worker. The former owner may not hear of it for long."""
        worker.position = min(self.committed + amount, len(self.log.requests))  # the stream may skip some at once
        self._perform(worker, worker.partition.assigned())
        return True

    def _revoke(self, worker: Worker, amount: int) -> bool:
        self._perform(worker, worker.partition.revoked())
        return True

    def _commit(self, worker: Worker, amount: int) -> bool:
        """Faust commits what was acknowledged; late, and by an old owner too."""
        if worker.acked < 0:
            return False
        self.committed = worker.acked + 1
        return True

    # ---- the stream

    def _deliver(self, worker: Worker, amount: int) -> bool:
        if worker.partition.phase == "idle" or worker.position >= len(self.log.requests):
            return False
        for record in self.log.requests[worker.position : worker.position + amount]:
            worker.position += 1
            self._perform(worker, worker.partition.delivered(record))
        return True

    def _skip(self, worker: Worker, amount: int) -> bool:
        if worker.position >= len(self.log.requests):
            return False
        worker.position += 1
        return True

    def _rewind(self, worker: Worker, amount: int) -> bool:
        if worker.position == 0:
            return False
        worker.position = max(0, worker.position - amount)
        return True

    def _tick(self, worker: Worker, amount: int) -> bool:
        """The worker looks how long `requests` is. With amount 0 it learns it at once, otherwise at its next tick."""
        ends = worker.ends or (0, len(self.log.requests))
        worker.ends = (0, len(self.log.requests)) if amount else None
        self._perform(worker, worker.partition.tick(*ends))
        return True

    # ---- the producer and the broker

    def _land(self, worker: Worker, amount: int) -> bool:
        if not worker.pipe:
            return False
        for _ in range(min(amount, len(worker.pipe))):
            record, reported = worker.pipe.popleft()
            offset = self.log.append(DECISIONS.name, record.value)
            self.reference.landed(offset, record.value)
            if not reported:
                worker.reports.append((record.source_offset, offset, None))
        return True

    def _lose(self, worker: Worker, amount: int) -> bool:
        """The oldest record on its way is refused: it never lands, and its report says so. Later ones may land."""
        if not worker.pipe:
            return False
        record, reported = worker.pipe.popleft()
        self.faults += 1
        if not reported:
            worker.reports.append((record.source_offset, None, "refused"))
        return True

    def _doubt(self, worker: Worker, amount: int) -> bool:
        """The fate of the oldest record is unknown to its writer; it may land all the same."""
        if not worker.pipe or worker.pipe[0][1]:
            return False
        record, _ = worker.pipe[0]
        worker.pipe[0] = (record, True)
        self.faults += 1
        worker.reports.append((record.source_offset, None, "timed out"))
        return True

    def _report(self, worker: Worker, amount: int) -> bool:
        if not worker.reports:
            return False
        for _ in range(min(amount, len(worker.reports))):
            if worker.alive:
                self._perform(worker, worker.partition.reported(*worker.reports.popleft()))
        return True

    def _send_dead_letters(self, worker: Worker, amount: int) -> bool:
        if not worker.dead_letters:
            return False
        attempt, dead_letters = worker.dead_letters.popleft()
        for dead_letter in dead_letters:
            self.dead_letters[dead_letter.source_offset, dead_letter.index] = dead_letter.content
        self._perform(worker, worker.partition.dead_letters_sent(attempt))
        return True

    def _pack(self, worker: Worker, effect: effects.WriteParts) -> None:
        worker.writes.append((effect.id, list(effect.pack()), []))
        self._perform(worker, worker.partition.packed(effect.id))

    def _write(self, worker: Worker, amount: int) -> bool:
        """Some records of a snapshot land; after the last of its parts the worker is told."""
        if not worker.writes:
            return False
        name, values, offsets = worker.writes[0]
        while len(offsets) < len(values) and amount > 0:
            offsets.append(self.log.append(STOCK_SNAPSHOTS.name, values[len(offsets)]))
            amount -= 1
        if len(offsets) == len(values):
            worker.writes.popleft()
            if not name:
                self.reference.snapshot(values[0])
            elif worker.alive:
                self._perform(worker, worker.partition.parts_written(name, offsets))
        return True

    def _haunt(self, worker: Worker, amount: int) -> bool:
        """A record or two of a process that is long dead land now."""
        zombie = self.zombies[amount % len(self.zombies)] if self.zombies else None
        return zombie is not None and (self._land(zombie, 1 + amount % 2) or self._write(zombie, amount))

    def _vanish(self, worker: Worker, amount: int) -> bool:
        """A record of a dead process is lost; later ones of it may land yet."""
        zombie = self.zombies[amount % len(self.zombies)] if self.zombies else None
        return zombie is not None and self._lose(zombie, 1)

    # ---- the worker's own reading

    def _load(self, worker: Worker, amount: int) -> bool:
        """One of the worker's loads gets `amount` answers."""
        if not worker.loadings:
            return False
        which = amount % len(worker.loadings)
        attempt, loading, ask = worker.loadings[which]
        try:
            for _ in range(amount):
                ask = loading.send(self.log.answer(ask))
        except StopIteration as end:
            del worker.loadings[which]
            self._perform(worker, worker.partition.loaded(attempt, end.value, self.now_s))
        else:
            worker.loadings[which] = (attempt, loading, ask)
        return True

    def _read(self, worker: Worker, amount: int) -> bool:
        if not worker.reads:
            return False
        attempt, start, end = worker.reads.popleft()
        self._perform(worker, worker.partition.requests_read(attempt, self.log.requests[start:end]))
        return True

    # ---- effects

    def _perform(self, worker: Worker, effects: list[Effect]) -> None:
        for effect in effects:
            if worker.cut == 0:
                self._crash(worker, 0)
            if not worker.alive:
                return
            worker.cut -= 1
            self._effects[type(effect)](worker, effect)

    def _crash(self, worker: Worker, amount: int) -> bool:
        """kill -9. What it gave to its producer may still land, late."""
        worker.alive = False
        worker.loadings.clear()
        worker.reads.clear()
        worker.dead_letters.clear()
        return True

    def _arm(self, worker: Worker, amount: int) -> bool:
        """The worker will die after so many more effects, so between any two of them."""
        worker.cut = amount
        return True

    def _stopped(self, worker: Worker, stop: effects.Stop) -> None:
        excused = self.faults > 0 if "fate" in stop.reason else stop.restart_cooldown
        if not excused:
            raise Violation("false alarm", stop.reason)
        self._crash(worker, 0)
        worker.cools_down = stop.restart_cooldown

    def _begin_load(self, worker: Worker, effect: effects.LoadTable) -> None:
        generation = max(1, self.plan.rejected_generation) + self.variant.remembers
        loading = load(0, TOPIC_IDS, self.variant.reader, effect.known, generation)
        worker.loadings.append((effect.attempt, loading, next(loading)))

    def _acknowledge(self, worker: Worker, effect: effects.Acknowledge) -> None:
        if effect.source_offset > self.reference.answered:
            raise Violation(
                "S3", f"request {effect.source_offset} is acknowledged; the last answer is to {self.reference.answered}"
            )
        worker.acked = max(worker.acked, effect.source_offset)

    def _worker(self, slot: int) -> Worker:
        rules: Rules = thrifty if self.plan.thrifty[slot] else self.variant.rules
        if not self.plan.rejected_generation:
            rules = partial(forgetful, rules)
        return Worker(self.variant.partition(0, TOPIC_IDS, self._new_epoch, rules, self._snapshot_due))

    def _snapshot_due(self, decided: int, remembered: int) -> bool:
        return decided >= self.plan.snapshot_every

    def _new_epoch(self) -> WriterEpoch:
        self.loads += 1
        return WriterEpoch(f"load{self.loads}")


APPEND, PIPE, WRITES, ZOMBIES, DEAD, ALIVE, REPORTS, LOADINGS, READS, DEAD_LETTERS, ACKED, OWNER, STREAM = (
    1 << n for n in range(13)
)
WORKERS_NEED = {
    "append": APPEND,
    "start": DEAD,
    "assign": ALIVE,
    "revoke": OWNER,
    "commit": ACKED,
    "deliver": STREAM,
    "skip": STREAM,
    "rewind": OWNER,
    "tick": OWNER,
    "land": PIPE,
    "lose": PIPE,
    "doubt": PIPE,
    "report": REPORTS,
    "send_dead_letters": DEAD_LETTERS,
    "write": WRITES,
    "load": LOADINGS,
    "read": READS,
    "crash": ALIVE,
    "arm": OWNER,
    "haunt": ZOMBIES,
    "vanish": ZOMBIES,
}
NEEDS = WORKERS_NEED | book.NEEDS
OF_THE_DEAD = {"append", "start", "land", "lose", "write", "haunt", "vanish", *book.NEEDS}
