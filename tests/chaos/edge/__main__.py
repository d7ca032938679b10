"""`python -m tests.chaos.edge --minutes M --seed S`: break gateways and Redis under tight limits, at the edge of stock.

Two gateways, real processes, every choice from the printed seed. Exit code 0: nothing is wrong, and enough happened
that something could have been; 1: otherwise, and the evidence is kept under `.stack/`. `--planted NAME` runs a gateway
with a bug (`--list` names them), and succeeds if the rule that is responsible says so.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.__main__ import Teller, arena, keep
from tests.chaos.arena import Arena
from tests.chaos.edge import account, coverage, refusals
from tests.chaos.edge.bugs import PLANTED
from tests.chaos.edge.buyers import LIMITS
from tests.chaos.edge.plan import EdgeRound, rounds
from tests.chaos.edge.play import Played, play
from tests.chaos.edge.rules import RULES
from tests.chaos.faults import AT_THE_EDGE, KINDS_AT_THE_EDGE
from tests.chaos.results import FOLDER as RESULTS
from tests.chaos.results import close
from tests.planted.builds.planting import FILE

TITLE = "Chaos at the edge"
# Both gateways share the limits while Redis is away, and believe what this machine says of its clients' addresses.
ENVIRONMENT = {"STAMPEDE_LIMITS": LIMITS, "STAMPEDE_TRUSTED_PROXIES": "127.0.0.1"}


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(prog="python -m tests.chaos.edge", description=__doc__)
    top.add_argument("--minutes", type=float, default=3.0, help="no round begins after this (3)")
    top.add_argument("--seed", type=int, default=None, help="of every choice; drawn and printed if not given")
    top.add_argument(
        "--fault",
        action="append",
        default=[],
        choices=sorted(AT_THE_EDGE),
        metavar="NAME",
        help="only this (too little may happen then)",
    )
    top.add_argument("--planted", choices=PLANTED, metavar="NAME", help="gateways with this bug")
    top.add_argument("--again", type=Path, metavar="FILE", help="judge once more what a failed round left")
    top.add_argument("--list", action="store_true", help="name the faults, and the bugs that can be planted")
    top.add_argument("--out", type=Path, default=RESULTS / "edge.md", help="the table is added to this file")
    return top


def main() -> int:
    """Run the command line."""
    asked = parser().parse_args()
    if asked.list:
        print("\n".join([*(f"{name:26} {AT_THE_EDGE[name].sentence}" for name in AT_THE_EDGE), "", *PLANTED]))
        return 0
    if asked.again:
        return _again(asked.again)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = time.time_ns() % 1_000_000 if asked.seed is None else asked.seed
    tell = Teller()
    tell(f"seed {seed}, {asked.minutes:g} minutes; starting the stack")
    names = asked.fault or (PLANTED[asked.planted].faults if asked.planted else AT_THE_EDGE)
    kinds = {name: KINDS_AT_THE_EDGE[name] for name in names}
    played: list[Played] = []
    with ExitStack() as opened:
        fought = opened.enter_context(arena(tell, _environment(opened, asked.planted), each=1))
        tell("the stack is up")
        for planned in rounds(seed, kinds):
            played.append(_round(fought, planned))
            if played[-1].wrong and not asked.planted:
                tell(f"evidence: {_keep(fought, played[-1], f'edge-{seed}-{planned.number}')}")
            if tell.minutes >= asked.minutes or _shown(asked.planted, played) or played[-1].account is None:
                break
    return _caught(asked.planted, played) if asked.planted else _report(asked, seed, played)


def _environment(opened: ExitStack, planted: str | None) -> dict[str, str]:
    if planted is None:
        return ENVIRONMENT
    order = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="stampede-planted-"))) / "planted"
    order.write_text(f"gateway: {planted}")
    return ENVIRONMENT | {FILE: str(order)}


def _round(fought: Arena, planned: EdgeRound) -> Played:
    faults = ", ".join(strike.fault for strike in planned.strikes)
    fought.tell(f"round {planned.number}: {faults} ({planned.lasts_s:.0f} s)")
    one = asyncio.run(play(fought, planned))
    for sentence in one.wrong:
        fought.tell(f"WRONG: {sentence}")
    fought.tell(
        f"round {planned.number}: {len(one.wrong)} violations, {one.counted['accepted']} accepted, "
        f"{one.counted['429s']} limited; {refusals.sentence(one.counted)}"
    )
    return one


def _keep(fought: Arena, failed: Played, name: str) -> Path:
    """Beside what `keep` keeps: what was seen at the edge. `--again` judges it once more."""
    kept = keep(fought, failed.evidence, name)
    if failed.account is not None:
        account.write(kept / "edge.json", failed.account)
    return kept


def _again(path: Path) -> int:
    seen = account.read(path)
    violations = [(rule.name, violation) for rule in RULES for violation in rule.check(seen)]
    for name, violation in violations:
        print(f"{name}: {violation.at}: {violation.what}")
    print(f"{len(violations)} violations; {refusals.sentence(refusals.counts(seen))}")
    return 1 if violations else 0


def _shown(planted: str | None, played: list[Played]) -> bool:
    """Whether something is wrong; with a bug, whether the rule that is responsible says so."""
    rule = PLANTED[planted].rule if planted else ""
    return any(sentence.startswith(rule) for sentence in found(played)[0])


def _caught(planted: str, played: list[Played]) -> int:
    """A gateway with no bug (no rule) must break none."""
    rule = PLANTED[planted].rule
    right = _shown(planted, played) == bool(rule)
    print(f"\nVERDICT: {planted}: {'' if right else 'NOT '}{f'caught by {rule}' if rule else 'without a violation'}")
    return 0 if right else 1


def strikes(played: Sequence[Played]) -> tuple[Counter[str], Counter[str]]:
    """How often each fault struck, and how often it found nothing."""
    hits = [(strike.fault, hit) for one in played for strike, hit in zip(one.round.strikes, one.hits, strict=False)]
    return Counter(name for name, hit in hits if hit), Counter(name for name, hit in hits if not hit)


def found(played: Sequence[Played]) -> tuple[list[str], Counter[str]]:
    """What is wrong, and how often what was tested happened."""
    counted: Counter[str] = sum((one.counted for one in played), Counter())
    return [sentence for one in played for sentence in one.wrong] + list(refusals.fallen(counted)), counted


def verdict(played: Sequence[Played]) -> tuple[list[str], Counter[str]]:
    """The same, and what is wrong if nothing could have been."""
    wrong, counted = found(played)
    struck, missed = strikes(played)
    never = [name for name in missed if not struck[name]]
    return wrong + list(coverage.vacuous(counted, LIMITS, sum(one.minutes for one in played), never)), counted


def table(played: Sequence[Played], counted: Counter[str]) -> str:
    """Markdown: the faults, and what they met."""
    struck, missed = strikes(played)
    lines = ["| fault | what happens | strikes |", "|---|---|---:|"]
    for name in AT_THE_EDGE:
        if struck[name] or missed[name]:
            noted = f" (+{missed[name]} missed)" if missed[name] else ""
            lines.append(f"| {name} | {AT_THE_EDGE[name].sentence} | {struck[name]}{noted} |")
    lines += ["", "| what was tested | times |", "|---|---:|"]
    lines += [f"| {what} | {count:,} |" for what, count in counted.items()]
    return "\n".join(lines)


def _report(asked: argparse.Namespace, seed: int, played: list[Played]) -> int:
    wrong, counted = verdict(played)
    minutes = sum(one.minutes for one in played)
    said = [
        f"{len(played)} rounds, {minutes:.1f} minutes of sale, **{len(wrong)} violations**.",
        f"What was {refusals.sentence(counted)}.",
        *(f"WRONG: {sentence}" for sentence in wrong),
    ]
    body = "\n".join([table(played, counted), "", *(f"- {sentence}" for sentence in said)])
    only = "".join(f" --fault '{name}'" for name in asked.fault)
    command = f"python -m tests.chaos.edge --minutes {asked.minutes:g} --seed {seed}{only}"
    settings = f"Limits: `{LIMITS}`\n\n"
    return close(asked.out, TITLE, seed, command, body, wrong=bool(wrong), settings=settings)


if __name__ == "__main__":
    sys.exit(main())
