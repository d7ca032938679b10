"""Many histories over several processes, and the table of mutants: which invariant found each, and how fast."""

import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.history import Failure, run
from tests.simulation.world import SHIPPED, Variant

CHUNK = 500  # histories a process takes at a time


class Found(NamedTuple):
    """A variant's first broken history: how many it took, and how long."""

    failure: Failure
    histories: int
    seconds: float


def hunt(variant: Variant, first_seed: int, histories: int) -> Found | None:
    """Run histories until one breaks an invariant."""
    began = time.perf_counter()
    for done in range(histories):
        try:
            run(first_seed + done, variant)
        except Failure as failure:
            return Found(failure, done + 1, time.perf_counter() - began)
    return None


def sweep(first_seed: int, histories: int, processes: int) -> Iterator[tuple[int, list[int]]]:
    """Run the shipped protocol; yields after each chunk how many are done and the seeds that failed in it."""
    chunks = [
        (seed, min(CHUNK, first_seed + histories - seed)) for seed in range(first_seed, first_seed + histories, CHUNK)
    ]
    done = 0
    with get_context("fork").Pool(processes) as pool:
        for size, failed in pool.imap_unordered(_chunk, chunks):
            done += size
            yield done, failed


def _chunk(chunk: tuple[int, int]) -> tuple[int, list[int]]:
    failed = []
    for seed in range(chunk[0], chunk[0] + chunk[1]):
        try:
            run(seed, SHIPPED)
        except Failure:
            failed.append(seed)
    return chunk[1], failed
