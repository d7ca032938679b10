"""One history: wander through the world by dice, heal it, let it come to rest, check it; and shorten what fails."""

from functools import cache
from random import Random

from eventlog.reader import Fenced, Progress
from inventory.domain import FoldBroken
from inventory.table import StockTable
from stampede_schemas.identifiers import ProductId
from stampede_schemas.topics import STOCK_SNAPSHOTS
from tests.simulation.plan import SLOTS, Plan, Step, draw
from tests.simulation.reference import Violation
from tests.simulation.world import NEEDS, OWNER, PIPE, SHIPPED, Variant, World
from tests.support.fakes.log import MemoryLog, run_load

_WEIGHTS: tuple[tuple[int, str, tuple[int, ...]], ...] = (
    (9, "append", (1, 2, 3)),
    (12, "deliver", (1, 1, 2, 3)),
    (10, "land", (1, 1, 2, 9)),
    (8, "report", (1, 1, 9)),
    (14, "load", (99, 99, 99, 99, 1, 2, 4)),
    (4, "read", (0,)),
    (4, "send_dead_letters", (0,)),
    (4, "write", (1, 9)),
    (4, "tick", (0, 0, 1)),
    (2, "commit", (0,)),
    (3, "assign", (0, 0, 0, 1, 2)),
    (1, "revoke", (0,)),
    (3, "start", (0,)),
    (1, "crash", (0,)),
    (1, "arm", (0, 1, 2, 3)),
    (1, "skip", (0,)),
    (1, "rewind", (1, 2, 5)),
    (1, "lose", (0,)),
    (1, "doubt", (0,)),
    (4, "haunt", (0, 1, 2, 3)),
    (1, "vanish", (0, 1)),
    (9, "apply", (0, 0, 1, 2, 3, 4, 5)),
    (6, "pay", (0, 1, 2, 3)),
    (4, "answer", (0, 1, 1, 1)),
    (3, "void", (0, 1)),
    (1, "expire", (0, 1, 2)),
    (4, "command", (0, 1, 6, 10, 10, 11)),
    (3, "come_back", (0, 1, 2)),
    (4, "read_command", (0,)),
    (2, "sweep", (0,)),
    (6, "relay", (0, 1, 1, 2)),
    (1, "restore", (0, 0, 1)),
)
_SLOTS = (0, 0, 0, 0, 1, 1, 2)
_PUMPED = (
    ("report", "reports"),
    ("land", "pipe"),
    ("send_dead_letters", "dead_letters"),
    ("write", "writes"),
    ("load", "loadings"),
    ("read", "reads"),
)
_REST_ROUNDS_MAX = 60
_RESTARTS_MAX = 8


class Failure(Exception):
    """A history that breaks an invariant: its plan, its steps and what broke."""

    def __init__(self, plan: Plan, steps: list[Step], violation: Violation) -> None:
        super().__init__(str(violation))
        self.plan, self.steps, self.violation = plan, steps, violation


def run(seed: int, variant: Variant = SHIPPED) -> World:
    """Live through the history of this seed. Raises Failure."""
    plan, dice = draw(seed)
    world = World(plan, variant)
    steps: list[Step] = []
    try:
        wander(world, dice, steps)
        rest(world)
        check(world)
    except Violation as violation:
        raise Failure(plan, steps, violation) from violation
    return world


def replay(plan: Plan, steps: list[Step], variant: Variant = SHIPPED) -> World:
    """Live through a given history; steps that are not possible are left out. Raises Violation."""
    world = World(plan, variant)
    for step in steps:
        world.do(step)
    rest(world)
    check(world)
    return world


def wander(world: World, dice: Random, steps: list[Step]) -> None:
    """Take the plan's number of steps, most of them on the first worker, written down before they are taken."""
    roll = dice.random
    first: list[Step] = [("append", 0, 2), ("assign", 0, 0), ("load", 0, 99)]
    for step in first:
        steps.append(step)
        world.do(step)
    while len(steps) < world.plan.steps:
        slot = _SLOTS[int(roll() * len(_SLOTS))]
        table = _table(world.chances(slot))
        verb, amounts = table[int(roll() * len(table))]
        if not verb:
            if roll() < 0.02:
                return  # enough of idle workers
            continue
        steps.append((verb, slot, amounts[int(roll() * len(amounts))]))
        world.do(steps[-1])


@cache
def _table(chances: int) -> list[tuple[str, tuple[int, ...]]]:
    """What to draw from when so much is possible; a worker that has nothing to do mostly does nothing."""
    table = [(verb, amounts) for n, verb, amounts in _WEIGHTS if chances & NEEDS[verb] for _ in range(n)]
    return table if chances & (OWNER | PIPE) else table + [("", ())] * 15


def rest(world: World) -> None:
    """No more faults: late records land or never do, and whoever owns the partition brings it to rest.

    Steps are quick from here on, so that two owners who meet in lockstep see soon that they fight.
    """
    world.pace_s = 0.02
    for zombie in world.zombies + [w for w in world.slots if not w.alive]:
        if world.plan.late_lands:
            world._land(zombie, 99)
        zombie.pipe.clear()
    for worker in world.slots:
        worker.cut, worker.ends = -1, None
    owners = [slot for slot in range(SLOTS) if world.slots[slot].alive and world.slots[slot].partition.phase != "idle"]
    if not world.plan.two_owners:
        for slot in owners[:-1]:
            world.do(("revoke", slot, 0))
        owners = owners[-1:]
    restarts = 0
    for _ in range(_REST_ROUNDS_MAX):
        owners = [slot for slot in owners if world.slots[slot].alive]
        if not owners:
            restarts += 1
            owners = [0]
            world.do(("start", 0, 0))
            world.do(("assign", 0, 0))
        before = world.step_no
        for slot in range(SLOTS):
            _pump(world, slot)
        if world.step_no == before and restarts <= _RESTARTS_MAX:
            world.do(("tick", owners[-1], 0))
            answered = world.reference.answered == len(world.log.requests) - 1
            if answered and world.slots[owners[-1]].partition.drained and not (world.book and world.book.rest()):
                return
    raise Violation(
        "L2", f"{world.reference.answered + 1} of {len(world.log.requests)} requests are answered, and nothing moves"
    )


def _pump(world: World, slot: int) -> None:
    worker = world.slots[slot]
    for verb, queue in _PUMPED:
        if getattr(worker, queue):
            world.do((verb, slot, 99))
    if worker.position < len(world.log.requests):
        world.do(("deliver", slot, 99))


def check(world: World) -> None:
    """Every reader and every table agrees with the reference. Raises Violation."""
    _check_readers(world)
    _check_tables(world)
    if world.book:
        world.book.check(world.reference)


def _check_readers(world: World) -> None:
    facts = [fact.offset for fact in world.reference.facts]
    decisions = world.log.decisions
    cut = world.plan.seed % (len(decisions) + 1)
    reader = world.variant.follower(Progress())
    saved = reader.progress
    for name in ("from the start", "resumed"):
        found = []
        for record in decisions[reader.progress.next_offset :]:
            if record.offset == cut:
                saved = reader.progress
            if not isinstance(reader.read(record.offset, record.value), Fenced):
                found.append(record.offset)
        if found != (facts if name != "resumed" else [offset for offset in facts if offset >= saved.next_offset]):
            raise Violation("S14", f"a reader {name} at {saved.next_offset} finds {found}, but {facts} count")
        reader = world.variant.follower(saved)


def _check_tables(world: World) -> None:
    generation = max(1, world.plan.rejected_generation) + world.variant.remembers

    def folded(log: MemoryLog) -> StockTable:
        return run_load(log, 0, reader_from=world.variant.reader, generation=generation).table

    whole = folded(_without_snapshots(world.log))
    for name, product in world.reference.products.items():
        known = whole.products[ProductId(name)]
        if (known.available, known.stock) != (product["available"], product["stock"]):
            raise Violation("S12", f"{name}: the fold has {known.available} left, the reference {product['available']}")
    for worker in world.slots:
        settled = worker.alive and worker.partition.drained
        if settled and worker.partition.confirmed.source_offset == world.reference.answered:
            _equal(worker.partition.table, whole, "the table of a worker")
    log = _without_snapshots(world.log)
    snapshots = world.log.snapshots
    for end, record in enumerate(snapshots, 1):
        if record.value is not None and b"SnapshotCommitted" in record.value[:40]:
            log.snapshots.extend(snapshots[len(log.snapshots) : end])
            try:
                table = folded(log)
            except (FoldBroken, LookupError) as broken:
                raise Violation("S12", f"the snapshot at {end - 1} and its tail do not fold: {broken}") from broken
            _equal(table, whole, f"the snapshot at {end - 1} with its tail")


def _equal(one: StockTable, other: StockTable, what: str) -> None:
    if one != other:
        raise Violation("S12", f"{what} is not the fold from the beginning")


def _without_snapshots(log: MemoryLog) -> MemoryLog:
    other = MemoryLog()
    for topic, records in log.topics.items():
        if topic != STOCK_SNAPSHOTS.name:
            other.topics[topic] = records
    return other


def shorten(failure: Failure, variant: Variant = SHIPPED) -> Failure:
    """Drop steps, in ever smaller runs, as long as the same invariant breaks."""
    best = failure
    size = max(len(best.steps) // 2, 1)
    while size:
        at = 0
        while at < len(best.steps):
            steps = best.steps[:at] + best.steps[at + size :]
            try:
                replay(best.plan, steps, variant)
                at += size
            except Violation as violation:
                if violation.rule == failure.violation.rule:
                    best = Failure(best.plan, steps, violation)
                else:
                    at += size
        size //= 2
    return best
