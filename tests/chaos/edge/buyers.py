"""Kinds of buyers: greedy ones, polite ones who live exactly at their limits, loyal ones who ask again; and a rush of
strangers, each once, for what never had a unit.

All of them ask whichever gateway they please, and every choice comes from the dice.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from replay.rules.s11_limiter import Allowance, Span
from tests.chaos.edge.account import UNANSWERED, Send
from tests.chaos.edge.client import Client, Order
from tests.chaos.edge.limits import Bound, had_room
from tests.chaos.edge.s11 import LIMITED, policies
from tests.chaos.edge.watch import now_ms

# A polite caller is held by the first two, one by one; three greedy ones behind one address by the third as well.
LIMITS = "user:token_bucket:4/s/5,user:sliding_window:20/10s,address:token_bucket:5/s/8"
GREEDY, GREEDY_PER_ADDRESS, POLITE, LOYAL, LOYAL_PER_ADDRESS = 9, 3, 6, 10, 2
GREEDY_EVERY_S, LOYAL_EVERY_S, POLITE_LOOK_S = 0.16, 1.2, 0.01
POLITE_REST_S = 0.5  # after 429: its limits are not what they were, for a while
AGAIN_S = (0.02, 0.3)
SOON_S = (0.0, 0.1)  # after a connection was cut
STRANGERS, STRANGER_EVERY_S, STRANGERS_PER_ADDRESS = 80, 0.2, 4  # 400 a second: twice what a stale view lets through
RUSH_LEAD_S = 0.5
DECLINED_SHARE = 0.15
REPEATS = 4  # of a loyal buyer, for each new order
SETTLE_S_MAX = 25.0
REPEATED_AT_END = 150
TRIES_MAX = 6
FORGOTTEN_MS = 25_000.0  # by the longest window, and whatever was late


@dataclass
class Crowd:
    """All buyers of a round. `run` sends them for so many seconds, `settle` asks for what is in doubt."""

    client: Client
    products: Sequence[str]
    dice: Random
    number: int  # of the round: no two share names or addresses
    gone: str  # a product that never had a unit
    accepted: dict[str, str] = field(default_factory=dict)  # key -> purchase
    _orders: int = 0
    _strange: int = 0
    _over: float = 0.0
    _tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def run(self, seconds: float) -> None:
        """Everybody buys."""
        self._over = time.monotonic() + seconds
        kinds = [self._greedy(n) for n in range(GREEDY)]
        kinds += [self._polite(n) for n in range(POLITE)]
        kinds += [self._loyal(n) for n in range(LOYAL)]
        await _all(kinds)
        await _all(list(self._tasks))

    async def settle(self) -> list[str]:
        """Ask again for every key in doubt until it is not, and for many others at each gateway. Those left."""
        over = time.monotonic() + SETTLE_S_MAX
        doubtful = [key for key, sends in self._by_key().items() if self._in_doubt(sends)]
        done = sorted(self.accepted)
        again = self.dice.sample(done, min(REPEATED_AT_END, len(done)))
        await _all([self._until_told(self.client.orders[key], over) for key in doubtful])
        for gateway in self.client.gateways:
            await _all([self._send(self.client.orders[key], gateway) for key in again])
        return [key for key, sends in self._by_key().items() if self._in_doubt(sends)]

    async def rush(self, at_s: float, seconds: float) -> None:
        """Strangers come to one gateway for what is gone, each once."""
        await asyncio.sleep(max(0.0, at_s - RUSH_LEAD_S))
        over, gateway = time.monotonic() + seconds + 2 * RUSH_LEAD_S, self._any()
        await _all([self._strangers(gateway, over) for _ in range(STRANGERS)])

    async def _strangers(self, gateway: str, over: float) -> None:
        while (began := time.monotonic()) < over:
            self._strange += 1
            address = self._address(100 + self._strange // 1000, self._strange // STRANGERS_PER_ADDRESS % 250)
            buyer = f"r{self.number}-stranger-{self._strange}"
            await self._send(self._ordered(buyer, address, self.gone), gateway)
            await asyncio.sleep(max(0.0, began + STRANGER_EVERY_S - time.monotonic()))

    # ---- who they are

    async def _greedy(self, number: int) -> None:
        """Asks far too often, and is not moved by 429."""
        buyer, address = f"r{self.number}-greedy-{number}", self._address(1, number // GREEDY_PER_ADDRESS)
        while self._goes_on():
            self._spawn(self._insist(self._order(buyer, address)))
            await asyncio.sleep(GREEDY_EVERY_S * self.dice.uniform(0.5, 1.5))

    async def _insist(self, order: Order) -> None:
        for _ in range(self.dice.choice([1, 1, 2, 3])):
            told = await self._send(order, self._any())
            if told is not None and told.status != LIMITED:
                return
            await asyncio.sleep(self.dice.uniform(*AGAIN_S))

    async def _polite(self, number: int) -> None:
        """Asks as soon as it must be let through, by its own account of all its limits; each time a new order."""
        buyer, address = f"r{self.number}-polite-{number}", self._address(2, number)
        limits, spent = policies(LIMITS), list[Span]()
        while self._goes_on():
            spent = [span for span in spent if span.from_ms > now_ms() - FORGOTTEN_MS]
            if not _must_be_let_through(limits, spent):
                await asyncio.sleep(POLITE_LOOK_S)
                continue
            told = await self._send(self._order(buyer, address), self._any())
            if told is None or told.status == LIMITED:
                await asyncio.sleep(POLITE_REST_S)
            else:
                spent.append(told.span)

    async def _loyal(self, number: int) -> None:
        """Buys now and then, in all the ways in which one can lose one's nerve, and asks for old orders again."""
        buyer, address = f"r{self.number}-loyal-{number}", self._address(3, number // LOYAL_PER_ADDRESS)
        mine: list[Order] = []
        ways = (self._once, self._twins, self._cuts, self._changes_at_once)
        while self._goes_on():
            order = self._order(buyer, address)
            mine.append(order)
            self._spawn(self.dice.choice(ways)(order))
            for _ in range(REPEATS):
                await asyncio.sleep(LOYAL_EVERY_S / REPEATS * self.dice.uniform(0.5, 1.5))
                self._spawn(self._again(self.dice.choice(mine)))

    # ---- what they do

    async def _once(self, order: Order) -> None:
        await self._until_told(order, time.monotonic() + 3.0, self.dice.choice([0, 0, 1, 2]))
        if purchase_id := self.accepted.get(order.key):
            await _all([self.client.look(order, purchase_id, gateway) for gateway in self.client.gateways])

    async def _twins(self, order: Order) -> None:
        """The same at every gateway at once, at one of them twice."""
        await _all([self._send(order, gateway) for gateway in [*self.client.gateways, self._any()]])

    async def _cuts(self, order: Order) -> None:
        """Resets the connection at once, and soon asks at another gateway."""
        one, other = self.dice.sample(sorted(self.client.gateways), 2)
        await self.client.cut(order, one)
        await asyncio.sleep(self.dice.uniform(*SOON_S))
        await self._send(order, other)
        await self._until_told(order, time.monotonic() + 3.0)

    async def _changes_at_once(self, order: Order) -> None:
        """Two bodies under one key, at two gateways or at one, and the first again."""
        one, other = self.dice.sample(2 * sorted(self.client.gateways), 2)
        await _all([self._send(order, one), self._send(order._replace(quantity=2), other)])
        await self._send(order, self._any())

    async def _again(self, order: Order) -> None:
        """Asks again, or with another body, or for another product, or looks, or takes it back."""
        purchase_id = self.accepted.get(order.key, "")
        what = ("again", "changed", "elsewhere", "look", "cancel")
        match self.dice.choices(what, (10, 2, 1, 4, 0.5))[0]:
            case "changed":
                await self._send(order._replace(quantity=2), self._any(), wait_s=self.dice.choice([0, 1]))
            case "elsewhere":
                await self._send(order._replace(product_id=self.dice.choice(self.products)), self._any())
            case "look" if purchase_id:
                await self.client.look(order, purchase_id, self._any())
            case "cancel" if purchase_id:
                await self.client.cancel(order, purchase_id, self._any())
            case _:
                await self._send(order, self._any(), wait_s=self.dice.choice([0, 0, 0, 1]))

    async def _until_told(self, order: Order, over: float, wait_s: int = 0) -> None:
        told = None
        for _ in range(TRIES_MAX if over - time.monotonic() < 5 else 10 * TRIES_MAX):
            told = await self._send(order, self._any(), wait_s=wait_s)
            if time.monotonic() > over or (told is not None and not _to_be_asked_again(told)):
                return
            await asyncio.sleep(self.dice.uniform(*AGAIN_S) + (0.5 if told is not None else 0.0))

    async def _send(self, order: Order, gateway: str, *, wait_s: int = 0) -> Send | None:
        told = await self.client.send(order, gateway, wait_s=wait_s)
        if told is not None and told.accepted:
            self.accepted.setdefault(order.key, told.purchase)
        return told

    # ---- what they need

    def _order(self, buyer: str, address: str) -> Order:
        return self._ordered(buyer, address, self.dice.choice(self.products))

    def _ordered(self, buyer: str, address: str, product_id: str) -> Order:
        self._orders += 1
        method = "declined" if self.dice.random() < DECLINED_SHARE else "ok"
        return Order(buyer, self._orders, address, product_id, 1, method)

    def _address(self, kind: int, number: int) -> str:
        """Of this round, kind and number alone."""
        return f"10.{self.number % 256}.{kind}.{number + 1}"

    def _any(self) -> str:
        return self.dice.choice(sorted(self.client.gateways))

    def _goes_on(self) -> bool:
        return time.monotonic() < self._over

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _by_key(self) -> dict[str, list[Send]]:
        found: dict[str, list[Send]] = {}
        for send in self.client.sends:
            found.setdefault(send.key, []).append(send)
        return found

    def _in_doubt(self, sends: list[Send]) -> bool:
        """Whether something may be in the log that nobody was told of, and nobody has asked since."""
        if any(send.accepted for send in sends):
            return False
        doubts = [send for send in sends if send.unsettled]
        told = [send for send in sends if not _to_be_asked_again(send)]
        return bool(doubts) and max((s.sent_ms for s in told), default=0.0) < max(s.answered_ms for s in doubts)


def _to_be_asked_again(told: Send) -> bool:
    return told.status in {UNANSWERED, 503, LIMITED} or told.kind == "in-flight"


def _must_be_let_through(limits: Sequence[Allowance], spent: Sequence[Span]) -> bool:
    now = now_ms()
    return all(had_room(Bound(policy, spent), Span(now, now)) for policy in limits)


async def _all(work: Sequence[Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(_await(one))


async def _await(one: Any) -> None:
    await one
