"""The simulator as a test: the shipped protocol holds, and every planted bug is found by a named invariant."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.history import Failure, replay, run, shorten
from tests.simulation.hunt import hunt, sweep
from tests.simulation.mutants import MUTANTS
from tests.simulation.plan import STEPS_MAX
from tests.simulation.reference import Violation
from tests.simulation.report import describe
from tests.simulation.world import World

HISTORIES = 5_000
COVERED = 1_000  # histories that are looked into
MUTANT_HISTORIES_MAX = 30_000

FOUND_BY = {
    "the first copy of a source offset counts": {"S1", "S4", "S14"},
    "a record counts where its writer expected it": {"S1", "S4", "S14"},
    "the last copy wins in one reader": {"S14"},
    "a reader resumes without the load": {"S14"},
    "no check of the landed offset": {"S3", "S12"},
    "acknowledged before the delivery report": {"S3"},
    "a snapshot contains unconfirmed decisions": {"S12", "S14"},
    "a snapshot names its writer's load": {"S12"},
    "a snapshot forgets rejected bodies": {"S12"},
    "a snapshot mixes generations": {"S12"},
    "one load id for all writers": {"S1", "S4", "S14"},
    "decisions before their dead letters": {"S16"},
    "the tail is never read": {"L2"},
    "no body is found different": {"S9"},
    "rejected bodies are forgotten": {"S9"},
    "a rejection is forgotten too early": {"S4"},
    "a rejection is forgotten too late": {"S4"},
    "a repeat names the last answer": {"S9"},
    "a retired product rejects": {"S4"},
    "a release forgets the money": {"S21"},
    "a cancelled purchase gives nothing back": {"S5"},
    "the row beats the log": {"S5"},
    "a late approval revives": {"S10"},
    "a refund is never told": {"S21"},
    "a release names another reservation": {"S5"},
    "a batch is reduced to its first outcome": {"S5"},
    "a rejected row is final": {"S5"},
    "a rejection is revived without a version": {"S10"},
    "a command on a rejected row is dropped": {"command", "S21"},
    "a command on a rejected row waits for ever": {"S21"},
}


def test_thousands_of_histories_hold() -> None:
    """Crashes, zombies, takeovers, lost and late records, holes: every invariant holds in each history."""
    failed = [seed for _, seeds in sweep(1_000_000, HISTORIES, 2) for seed in seeds]
    for seed in failed[:1]:
        with pytest.raises(Failure) as failure:
            run(seed)
        pytest.fail(describe(failure.value))
    assert not failed


def told(world: World) -> Iterator[tuple[str, ...]]:
    """What each decision that counts says of a purchase, and what was said of it before."""
    facts = {fact.offset for fact in world.reference.facts}
    before: dict[str, str] = {}
    for record in world.log.decisions:
        for said in json.loads(record.value or b"")["decisions"] if record.offset in facts else ():
            if "purchase_id" in said:
                yield before.get(said["purchase_id"], ""), said["type"], said.get("reason", "")
                yield said["type"], said.get("reason", ""), "mismatch" if said.get("mismatch") else ""
                if said["type"] != "Ignored":
                    before[said["purchase_id"]] = said["type"]


def test_the_histories_hold_what_they_are_about() -> None:
    """Repeats with the same and with another body, retired products, rejections that are forgotten and decided anew."""
    seen = {said for seed in range(2_000_000, 2_000_000 + COVERED) for said in told(run(seed))}
    assert seen >= {
        ("Ignored", "answered", ""),
        ("Ignored", "answered", "mismatch"),
        ("Ignored", "retired", ""),
        ("Reserved", "Ignored", "retired"),
        ("Rejected", "Ignored", "answered"),
        ("Rejected", "Rejected", "sold_out"),
        ("Rejected", "Reserved", ""),
    }


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same log, byte for byte, whatever ran before it."""
    logs = []
    for _ in range(2):
        world = run(4_711)
        logs.append([record.value for record in world.log.decisions + world.log.snapshots])
        run(4_712)
    assert logs[0] == logs[1]
    assert logs[0]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    """Each broken protocol, reader or rule breaks an invariant within thousands of histories (seconds)."""
    found = hunt(MUTANTS[name], 1, MUTANT_HISTORIES_MAX)
    assert found is not None, "the simulator is blind to this"
    assert found.failure.violation.rule in FOUND_BY.get(name, {found.failure.violation.rule})


def test_a_failure_is_shortened_and_told() -> None:
    """What is printed has the seed, the invariant, few steps and the log, and its steps still break the protocol."""
    variant = MUTANTS["one load id for all writers"]
    found = hunt(variant, 1, MUTANT_HISTORIES_MAX)
    assert found is not None
    short = shorten(found.failure, variant)
    assert len(short.steps) < len(found.failure.steps) <= STEPS_MAX + 3
    with pytest.raises(Violation, match=found.failure.violation.rule):
        replay(short.plan, short.steps, variant)
    told = describe(found.failure, variant)
    assert f"seed {found.failure.plan.seed}" in told
    assert "counts, answers" in told


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (("--histories", "300", "--seed", "5", "--processes", "2"), 0, "300 histories from seed 5: 0 violations"),
        (("--mutant", "one load id for all writers"), 0, "void, answers"),
    ],
)
def test_the_command_line_runs(asked: tuple[str, ...], code: int, said: str) -> None:
    """As the module says it is called."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout
