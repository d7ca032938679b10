"""When Redis is believed: the rule over plain time, with a Postgres and a log that the test holds."""

from collections.abc import Mapping

from gateway.store import Away
from gateway.trust import NAME, SLACK_S, UNTOLD_S_MAX, Trust
from ratelimit.claim import DEADLINE_S

OLD, NEW, OTHER = "sentinel run-1 0", "sentinel run-2 0", "another run-2 0"
DUE_S = DEADLINE_S + SLACK_S


class Installation:
    """What gateways share: the believed stamp, what the order-writer applied, where `requests` ends."""

    def __init__(self, believed: str | None = OLD) -> None:
        self.kept, self.away = believed, False
        self.done: dict[int, int] = {}
        self.end = 10

    async def installation(self, name: str) -> str | None:
        """See Store."""
        assert name == NAME
        if self.away:
            raise Away("away")
        return self.kept

    async def replace_installation(self, name: str, old: str | None, new: str) -> None:
        """See Store."""
        assert name == NAME
        if self.kept == old:
            self.kept = new

    async def applied(self) -> dict[int, int]:
        """See Store."""
        return self.done

    async def ends(self) -> Mapping[int, int]:
        """One partition with records, one without."""
        return {0: self.end, 1: 0}


class Gateway:
    """One gateway's trust, and its clock."""

    def __init__(self, shared: Installation) -> None:
        self.now = 100.0
        self.trust = Trust(shared, shared.ends, lambda: self.now)

    async def look(self, stamp: str, after_s: float = 0.0, untold_s: float = 0.0) -> bool:
        """Look after so many seconds; whether Redis is believed now."""
        self.now += after_s
        await self.trust.look(stamp, untold_s)
        return self.trust.vouches(stamp)


async def test_the_first_redis_of_an_installation_is_believed_at_once() -> None:
    """And so it is by gateways that come later, and by restarted ones."""
    shared = Installation(None)
    assert not await Gateway(shared).look("")
    assert shared.kept is None
    assert await Gateway(shared).look(OLD)
    assert await Gateway(shared).look(OLD)


async def test_another_stamp_is_believed_once_every_request_that_may_lack_a_claim_has_a_row() -> None:
    """Not by a restart, not before the deadline of what was in flight, not while the order-writer is behind."""
    shared = Installation()
    one = Gateway(shared)
    assert not await one.look(NEW)
    assert not await Gateway(shared).look(NEW)
    assert not await one.look(NEW, DUE_S - 0.1)
    shared.end = 20  # appended by then, perhaps let in before the loss
    shared.done = {0: 18}
    assert not await one.look(NEW, 0.1)
    shared.end = 30  # what comes now has its claim
    shared.done = {0: 19}
    assert await one.look(NEW, 1)
    assert await Gateway(shared).look(NEW)


async def test_a_second_loss_begins_the_wait_anew() -> None:
    """Also one that comes right before the end."""
    shared = Installation()
    shared.done = {0: 99}
    one = Gateway(shared)
    assert not await one.look(NEW)
    assert not await one.look(OTHER, DUE_S)
    assert not await one.look(NEW, 1)
    assert not await one.look(NEW, DUE_S - 0.1)
    assert await one.look(NEW, 0.1)


async def test_away_for_a_while_changes_nothing_if_nothing_was_lost() -> None:
    """The same memory answers again: it is believed as before."""
    shared = Installation()
    one = Gateway(shared)
    assert await one.look(OLD)
    assert not await one.look("", 60)
    assert await one.look(OLD, 60)


async def test_what_redis_cannot_be_told_withdraws_the_trust_of_all_gateways() -> None:
    """Others would deny those purchases; it takes the whole wait until it is believed again."""
    shared = Installation()
    shared.done = {0: 99}
    cut_off, other = Gateway(shared), Gateway(shared)
    assert await other.look(OLD)
    await cut_off.look("", untold_s=UNTOLD_S_MAX - 0.1)
    assert await other.look(OLD, 1)
    await cut_off.look("", untold_s=UNTOLD_S_MAX + 0.1)
    assert not await other.look(OLD, 1)
    assert not await other.look(OLD, DUE_S - 0.1)
    assert await other.look(OLD, 0.1)


async def test_without_postgres_everything_stays_as_it_was() -> None:
    """What was believed is; what was not is not."""
    shared = Installation()
    one, late = Gateway(shared), Gateway(shared)
    assert await one.look(OLD)
    shared.away = True
    assert await one.look(OLD, 60)
    assert not await one.look(NEW, 60)
    assert not await late.look(OLD)
