"""Gateways that die between the log and the claim, for rounds at the door: the others see them die anywhere."""

from functools import partial

from tests.chaos.faults.fault import Fault
from tests.chaos.faults.processes import crash, restart

CRASHES = {
    "claimed": "dies when it has claimed purchases, before they are handed to the log",
    "acknowledged": "dies when the log has acknowledged, before anybody hears of it",
    "answered": "dies when buyers have their answer, before their claims are settled",
}

ALSO = (
    "gateway killed",
    "redis killed",
    "redis flushed",
    "redis failed over",
    "redis evicting",
    "redis frozen",
    "gateway-redis cut",
    "gateway-redis stalled",
    "gateway-redis slow",
)

FAULTS: dict[str, Fault] = {
    "gateway restarted": Fault("SIGTERM, and a successor", partial(restart, "gateway"), "gateway"),
    **{
        f"gateway {point}": Fault(sentence, partial(crash, "gateway", point), "gateway")
        for point, sentence in CRASHES.items()
    },
}
