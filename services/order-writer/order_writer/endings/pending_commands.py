"""Commands that wait for their purchase: told once its row is decided, dead letters when it will not come."""

from order_writer.consume.commands import COMMANDS_PER_TRANSACTION_MAX, REPORTED, _give_up, _read, _tell
from order_writer.saga.decision_batch import Record
from order_writer.unit_of_work import Money, UnitsOfWork
from stampede_schemas.order_commands import PaymentReported
from stampede_schemas.topics import DECISIONS

SWEEP_EVERY_S = 1.0
PARKED_S_MAX = 600.0
# `parked_at` is the start of the transaction that was given the command, so it lies after each decision that its sender
# can have seen. It is compared with `applied.until` because both are Postgres' clock; `appended_at` is the broker's.
UNPARK = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c JOIN purchases u USING (purchase_id)
  WHERE u.status <> 'rejected'
     OR parked_at < (SELECT until FROM applied WHERE topic = $2 AND partition = u.partition)
  LIMIT $1 FOR UPDATE OF c SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""
GIVE_UP = """
DELETE FROM pending_commands WHERE command_id IN (
  SELECT command_id FROM pending_commands c
  WHERE parked_at + $2 * interval '1 second'
        < (SELECT min(until) FROM applied WHERE topic = $3 HAVING count(*) = $4)
    AND NOT EXISTS (SELECT FROM purchases u WHERE u.purchase_id = c.purchase_id)
  ORDER BY parked_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING payload, partition, source_offset, appended_at"""


async def sweep_pending(units: UnitsOfWork) -> bool:
    """Tell pending commands whose row is decided by now, give up those whose row will not come; whether there is more.

    Several sweeps may run at once: each takes what the others have not locked.
    """
    async with units.open() as unit:
        met = await unit.connection.fetch(UNPARK, COMMANDS_PER_TRANSACTION_MAX, DECISIONS.name)
        await _tell(unit, [Record(*row) for row in met])
    async with units.open() as unit:
        limits = (COMMANDS_PER_TRANSACTION_MAX, PARKED_S_MAX, DECISIONS.name, DECISIONS.partitions)
        alone = [Record(*row) for row in await unit.connection.fetch(GIVE_UP, *limits)]
        money = Money()
        for it in alone:
            _give_up(unit, it, "no_such_purchase")
            command = _read(it.value)
            if isinstance(command, PaymentReported) and command.outcome == "approved":
                money.voids[command.purchase_id] = REPORTED, True
        await unit.pay(money)
    return max(len(met), len(alone)) == COMMANDS_PER_TRANSACTION_MAX
