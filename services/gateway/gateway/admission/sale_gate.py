"""The sale gate: early rejection of purchases that the log would surely reject. It refuses on a fresh view only; what
it says here is by the last known state, and whether the view is fresh is for `decide` to weigh."""

from typing import assert_never

from gateway.admission.decide import Gate, Step, gate_of
from gateway.admission.send import REPLAYED, Answer
from gateway.http import problems
from gateway.http.retry_after import key_reused, overloaded, undecided
from gateway.read_side.broker_clock import BrokerClock
from gateway.read_side.projection import Projection
from service.problem_details import Problem
from stampede_schemas.identifiers import ProductId
from stampede_schemas.topics import PARTITIONS

STALE_APPENDS_PER_S = 200  # per partition: what a view that is not fresh lets through to the log


class SaleGate:
    """By product, over the projection and the broker's clock."""

    def __init__(self, projection: Projection, clock: BrokerClock) -> None:
        self._projection, self._clock = projection, clock

    def says(self, product_id: ProductId) -> Gate:
        """What it says of a new purchase now."""
        return gate_of(self._projection.products.get(product_id), self._clock.now_ms())

    def refusal(self, product_id: ProductId) -> Problem:
        """The answer to a purchase that it refuses: no outcome, and nothing was logged."""
        product, now_ms = self._projection.products.get(product_id), self._clock.now_ms()
        if product is None:
            return Problem(problems.UNKNOWN_PRODUCT, "There is no product with this id.")
        if gate_of(product, now_ms) == "sold out":
            detail = "Nothing is left; units on hold may come back." if product.may_reopen else "Nothing is left."
            return Problem(problems.SOLD_OUT, detail, extra={"may_reopen": product.may_reopen})
        shown = product.sale_status(now_ms)
        return Problem(problems.NOT_OPEN, f"The sale is {shown}.", extra={"sale_status": shown})


class StaleAppends:
    """How many purchases of a partition may still go to the log this second although the view is not fresh."""

    def __init__(self, per_s: int = STALE_APPENDS_PER_S) -> None:
        self._per_s = per_s
        self._spent = [(0, 0)] * PARTITIONS  # the second, and how many in it

    def take(self, partition: int, now_s: float) -> bool:
        """Whether there was one left; it is taken."""
        second, spent = self._spent[partition]
        if second != int(now_s):
            second, spent = int(now_s), 0
        self._spent[partition] = second, spent + (spent < self._per_s)
        return spent < self._per_s


def final_answer(step: Step, gate: SaleGate, product_id: ProductId) -> Answer:
    """The answer of a step that is one."""
    match step:
        case "replay":
            return REPLAYED
        case "key reused":
            return key_reused()
        case "await decision":
            return undecided()
        case "refuse":
            return gate.refusal(product_id)
        case "busy":
            return overloaded("The gateway cannot see the end of the log now; nothing was done.")
        case "join" | "ask row" | "ask limits" | "limited" | "ask end" | "append":
            raise AssertionError(f"{step} is no answer")
        case _:
            assert_never(step)
