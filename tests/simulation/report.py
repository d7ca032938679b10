"""A failed history in words: the steps that were left after shortening, and the log they end with."""

import msgspec

from tests.simulation.history import Failure, rest, shorten
from tests.simulation.reference import Violation
from tests.simulation.world import SHIPPED, Variant, World


def describe(failure: Failure, variant: Variant = SHIPPED) -> str:
    """What broke, the shortest list of steps found that breaks it, and what then stands in the log."""
    short = shorten(failure, variant)
    plan = short.plan
    lines = [f"seed {plan.seed}, {variant.name}: {short.violation}", f"  thrifty workers: {plan.thrifty}", "  steps:"]
    lines += [f"    {verb} worker={slot} {amount}" for verb, slot, amount in short.steps]
    lines.append("  then no more faults, until all is at rest")
    return "\n".join(lines + _log(short, variant))


def _log(failure: Failure, variant: Variant) -> list[str]:
    world = World(failure.plan, variant)
    try:
        for step in failure.steps:
            world.do(step)
        rest(world)
    except Violation:
        pass  # it is shown as it stood when it broke
    lines = ["  requests:"]
    lines += [f"    {record.offset}: {(record.value or b'').decode(errors='replace')}" for record in world.log.requests]
    lines.append("  decisions:")
    facts = {fact.offset for fact in world.reference.facts}
    for record in world.log.decisions:
        answer = msgspec.json.decode(record.value or b"")
        said = ", ".join(f"{d['type']} {d.get('reason', '')}".strip() for d in answer["decisions"])
        kind = "counts" if record.offset in facts else "void"
        lines.append(
            f"    {record.offset}: {kind}, answers {answer['source_offset']}, {answer['load']} from "
            f"{answer['start']}: {said}"
        )
    return lines
