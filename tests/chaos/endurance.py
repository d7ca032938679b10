"""`python -m tests.chaos.endurance`: 300,000 requests at a paced 2,000/s while the inventory dies again and again.

It drives the log directly, so that nothing but the worker stands between a request and its decision; then every
request must have exactly one counting decision, and the one that the reference model makes of the requests alone.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

from devstack.layout import last_lines
from eventlog.__main__ import provision
from replay import live
from replay.evidence import Evidence
from replay.judge import judge
from stampede_schemas.requests import AnyRequest
from stampede_schemas.topics import PARTITIONS, REQUESTS
from tests.chaos.__main__ import Teller
from tests.chaos.arena import Kill
from tests.chaos.recovery import Recovery, recoveries, summary
from tests.chaos.results import FOLDER, close
from tests.support.processes.inventory import InventoryProcess, Log, listing, purchase
from tests.support.processes.stack import components

PRODUCTS = 24
PER_RECORD = 8
REPEATED_SHARE = 0.03  # of the requests carry a purchase_id that was sent before
STOCK_SHARE = 0.6
BETWEEN_KILLS_S = (2.5, 5.5)
KILLS_MIN = 30
DRAIN_S_MAX = 60.0
TELL_EVERY_S = 10.0
TITLE = "Endurance: paced requests and a worker that dies"


class Feed:
    """Appends purchases at a steady pace from a thread of its own, all of them drawn from the dice."""

    def __init__(self, log: Log, dice: Random, requests: int, per_second: int) -> None:
        self.sent = 0
        self._log, self._dice, self._requests, self._per_second = log, dice, requests, per_second
        self._products = [f"tea-{dice.randrange(16**8):08x}" for _ in range(PRODUCTS)]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """List the products, then begin."""
        for product_id in self._products:
            self._log.ask([listing(product_id, round(self._requests / PRODUCTS * STOCK_SHARE))])
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether everything is appended."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.monotonic()
        known: dict[str, list[str]] = {product_id: [] for product_id in self._products}
        while self.sent < self._requests:
            product_id = self._dice.choice(self._products)
            self._log.ask([self._purchase(product_id, known[product_id]) for _ in range(PER_RECORD)])
            self.sent += PER_RECORD
            time.sleep(max(0.0, began + self.sent / self._per_second - time.monotonic()))
        self._log.flush()

    def _purchase(self, product_id: str, known: list[str]) -> AnyRequest:
        if known and self._dice.random() < REPEATED_SHARE:
            return purchase(product_id, self._dice.choice(known))
        known.append(f"p-{self._dice.randrange(16**12):012x}")
        return purchase(product_id, known[-1])


class Found(NamedTuple):
    """What the log says afterwards."""

    asked: int
    missing: int
    wrong: list[str]
    conflicting: int
    void: int
    kills: int
    recovered: list[Recovery]


def run(requests: int, per_second: int, seed: int, tell: Teller) -> Found:
    """The whole of it, on components of its own."""
    dice = Random(seed)
    with components() as running, tempfile.TemporaryDirectory(prefix="stampede-endurance-") as made:
        provision(running.kafka, 1)
        worker = InventoryProcess(running.kafka, Path(made))
        kills: list[Kill] = []
        try:
            worker.await_ready()
            log = Log(running.kafka)
            feed = Feed(log, Random(dice.randrange(2**32)), requests, per_second)
            feed.start()
            told = time.monotonic()
            while not feed.finished:
                time.sleep(dice.uniform(*BETWEEN_KILLS_S))
                assert worker.process.poll() is None, last_lines(Path(made) / "inventory-0.log", 3)
                worker.kill()
                kills.append(Kill(time.time_ns() // 1_000_000, "inventory-0", False, frozenset(range(PARTITIONS))))
                worker.close()
                worker = InventoryProcess(running.kafka, Path(made))
                if time.monotonic() - told > TELL_EVERY_S:
                    told = time.monotonic()
                    tell(f"{feed.sent:,} of {requests:,} requests, {len(kills)} kills")
            tell(f"all {feed.sent:,} requests are in the log, {len(kills)} kills; waiting for their decisions")
            _drain(worker, log)
            evidence = live.log(running.kafka)
            evidence.states = live.states([f"http://127.0.0.1:{worker.ops}"])
        finally:
            worker.close()
    return _found(evidence, kills)


def _drain(worker: InventoryProcess, log: Log) -> None:
    worker.await_ready()
    deadline = time.monotonic() + DRAIN_S_MAX
    for number, end in log.ends(REQUESTS.name).items():
        while end and worker.get(f"/state?partition={number}")["source_offset"] != end - 1:
            assert time.monotonic() < deadline, f"partition {number} is not decided after {DRAIN_S_MAX:.0f} s"
            time.sleep(0.1)


def _found(evidence: Evidence, kills: list[Kill]) -> Found:
    answered = [place for place, _ in evidence.answers()]
    held = [answer.purchase_id for answer in evidence.reserved.values()]
    wrong = [
        f"{found.name}: {found.violations} violations, first {found.first[0].at}: {found.first[0].what}"
        for found in judge(evidence)
        if found.violations
    ]
    asked = evidence.requested()
    return Found(
        asked,
        asked - len(set(answered)),
        wrong,
        len(answered) - len(set(answered)) + len(held) - len(set(held)),
        sum(len(part.void) for part in evidence.partitions.values()),
        len(kills),
        list(recoveries(evidence, kills)),
    )


def main() -> int:
    """Run the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.chaos.endurance", description=__doc__)
    top.add_argument("--requests", type=int, default=300_000)
    top.add_argument("--per-second", type=int, default=2_000)
    top.add_argument("--seed", type=int, default=1)
    top.add_argument("--out", type=Path, default=FOLDER / "endurance.md", help="the result is added to this file")
    asked = top.parse_args()
    tell = Teller()
    tell(f"seed {asked.seed}: {asked.requests:,} requests at {asked.per_second:,}/s")
    found = run(asked.requests, asked.per_second, asked.seed, tell)
    body = "\n".join(
        [
            f"- {found.asked:,} requests, {found.kills} kill -9 of the inventory",
            f"- **{found.missing} missing, {len(found.wrong)} wrong, {found.conflicting} conflicting**; "
            f"{found.void} void records",
            f"- from kill -9 to the next decision, by partition: {summary(found.recovered, clean=False)}",
            *(f"- wrong: {sentence}" for sentence in found.wrong),
        ]
    )
    whole = f"--requests {asked.requests} --per-second {asked.per_second} --seed {asked.seed}"
    failed = (
        found.missing or found.wrong or found.conflicting or (asked.requests >= 300_000 and found.kills < KILLS_MIN)
    )
    command = f"python -m tests.chaos.endurance {whole}"
    return close(asked.out, TITLE, asked.seed, command, body, wrong=bool(failed))


if __name__ == "__main__":
    sys.exit(main())
