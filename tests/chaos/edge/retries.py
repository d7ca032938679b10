"""`python -m tests.chaos.edge.retries --tries N --seed S`: connections are cut, and their buyers ask again elsewhere.

Nothing is left; a unit comes back; a buyer sends, resets the connection, and within 100 ms sends again at the other
gateway, which may not have heard of the unit and has not heard of the first send. If that one is in the log by then,
the second must not be told "sold out", nor anything else that denies it. In the second half of the tries both gateways
hear of decisions up to 80 ms late. Exit code 0: no violation; 1: some. `--planted NAME` as at the edge.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from random import Random
from typing import NamedTuple

import aiohttp

from gateway.auth.ids import IdentityKey
from replay import live
from replay.evidence import Violation
from stampede_schemas.topics import partition_of
from tests.chaos.arena import BUILDS
from tests.chaos.builds.behind import behind
from tests.chaos.builds.points import FOLDER
from tests.chaos.edge.account import Account, Send, write
from tests.chaos.edge.bugs import PLANTED
from tests.chaos.edge.client import Client, Order
from tests.chaos.edge.play import account_of, witnessed
from tests.chaos.edge.rules import BY_LOG, stood
from tests.chaos.edge.till import Till
from tests.chaos.faults.edge import BEHIND_S_MAX
from tests.chaos.plan import product
from tests.chaos.verdict import at_rest
from tests.planted.builds.planting import FILE
from tests.support.processes.stack import ROOT, LocalStack, stack

PRODUCTS, AT_ONCE = 8, 16
RELEASE_LEAD_S = (0.0, 0.02)  # before the first send, which has to wait at the gate then
DECIDED_SHARE = 0.5  # of the first sends come when the unit is there, and are in the log within some ms
AGAIN_S = (0.0, 0.1)
LASTS_S_MAX = 900.0
LIMITS = "user:token_bucket:1000/s"


class Tried(NamedTuple):
    """What came of it. `landed`: how many first sends stood in the log before the retry, while it was answered, later
    or never; `closed`: of the first, those whose retry came when nothing was left; `told`: what retries were told."""

    tries: int
    landed: Counter[str]
    closed: int
    told: Counter[str]
    wrong: list[tuple[str, Violation]]
    account: Account


@contextmanager
def two_gateways(planted: str | None = None) -> Iterator[tuple[LocalStack, Path]]:
    """A stack with two test builds of the gateway, and the folder through which they are told things."""
    with tempfile.TemporaryDirectory(prefix="stampede-retries-") as made:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {FOLDER: made, "PYTHONPATH": path, "STAMPEDE_LIMITS": LIMITS}
        if planted is not None:
            order = Path(made) / "planted"
            order.write_text(f"gateway: {planted}")
            env[FILE] = str(order)
        with stack(env, gateway=2, modules={"gateway": BUILDS["gateway"]}) as running:
            yield running, Path(made)


async def tried(running: LocalStack, folder: Path, tries: int, seed: int) -> Tried:
    """Try so often, and compare all answers with the log."""
    endpoints, dice = running.endpoints, Random(seed)
    gateways = {f"gateway-{number}": url for number, url in enumerate(endpoints.gateway)}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4 * AT_ONCE)) as http:
        client, till = Client(http, gateways), Till(http, endpoints, dice)
        products = _products(dice)
        for one in products:
            await till.list(one, 0)
        numbers = iter(range(tries))

        async def some(until: int) -> None:
            for number in numbers:
                await _try(client, till, Random(f"{seed} {number}"), products[number % PRODUCTS], number)
                if number >= until:
                    return

        async with asyncio.timeout(LASTS_S_MAX):
            await asyncio.gather(*(some(tries // 2) for _ in range(AT_ONCE)))
            with behind(folder, list(gateways), BEHIND_S_MAX):
                await asyncio.gather(*(some(tries) for _ in range(AT_ONCE)))
    wrong, _ = await at_rest(running)
    assert not wrong, wrong
    evidence = await asyncio.to_thread(live.log, running.kafka)
    account = account_of(client, IdentityKey(running.layout.secret("identity-key")), evidence)
    account.calls = witnessed(folder, gateways)
    return judged(account)


def judged(account: Account) -> Tried:
    """Pure: what an account of tries says."""
    landed, told, closed = Counter[str](), Counter[str](), 0
    for key, (_, again) in account.by_key.items():
        when = _landed(account, key, again)
        landed[when] += 1
        closed += when == "before" and stood(account, again) == 0
        told[again.kind or str(again.status)] += 1
    wrong = [(rule.name, violation) for rule in BY_LOG for violation in rule.check(account)]
    return Tried(len(account.by_key), landed, closed, told, wrong, account)


def _landed(account: Account, key: str, again: Send) -> str:
    at = min(account.fate(key).appended_ms, default=inf)
    if at < again.sent_ms:
        return "before"
    if at < again.answered_ms:
        return "meanwhile"
    return "later" if at < inf else "never"


def _products(dice: Random) -> list[str]:
    """Each in a partition of its own."""
    found: dict[int, str] = {}
    while len(found) < PRODUCTS:
        made = product(dice, odd=False)
        found.setdefault(partition_of(made), made)
    return list(found.values())


async def _try(client: Client, till: Till, dice: Random, product_id: str, number: int) -> None:
    one, other = dice.sample(sorted(client.gateways), 2)
    order = Order(f"cut-{number}", number, "", product_id, 1, "ok")
    if await till.shown(client.gateways[one], product_id) == 0:  # else somebody left a unit
        release = asyncio.create_task(till.give(product_id, 1))
    else:
        release = asyncio.create_task(asyncio.sleep(0))
    if dice.random() < DECIDED_SHARE:
        await release
    else:
        await asyncio.sleep(dice.uniform(*RELEASE_LEAD_S))
    await client.cut(order, one)
    await asyncio.sleep(dice.uniform(*AGAIN_S))
    await client.send(order, other)
    await release


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.edge.retries", description=__doc__)
    parser.add_argument("--tries", type=int, default=1_000, help="how many buyers (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of every choice (1)")
    parser.add_argument("--planted", choices=PLANTED, metavar="NAME", help="gateways with this bug")
    asked = parser.parse_args()
    with two_gateways(asked.planted) as (running, folder):
        found = asyncio.run(tried(running, folder, asked.tries, asked.seed))
    for name, violation in found.wrong:
        print(f"{name}: {violation.at}: {violation.what}")
    print(f"tries {found.tries:,}; the retry was told: {dict(found.told)}")
    print(
        f"the first send was in the log: {dict(found.landed)}; nothing was left then for {found.closed:,} of `before`"
    )
    print(f"violations {len(found.wrong)} (seed {asked.seed})")
    if found.wrong and not asked.planted:
        kept = ROOT / ".stack" / f"failed-retries-{asked.seed}.json"
        write(kept, found.account)
        print(f"evidence: {kept}; `python -m tests.chaos.edge --again` judges it once more")
    return 1 if found.wrong or not found.closed else 0


if __name__ == "__main__":
    sys.exit(main())
