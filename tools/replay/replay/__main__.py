"""`replay`: export a sale from its log, check it, verify a running system, read dead letters and redrive them.

Exit code 0: everything that was looked at holds; 1: an invariant is violated; 2: it could not be checked, and why.
"""

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from replay import canaries, dead_letters, judge, live, provider_statement, report, salefile
from replay import journal as journals
from replay.evidence import Evidence
from replay.failure import CannotCheck
from replay.redrive import redrive
from replay.rules import RULES, Rule
from stampede_schemas.topics import PARTITIONS, partition_of

ENDPOINTS = Path(".stack/endpoints.json")


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="replay", description="Reads a sale back from its log and judges it.")
    attached = argparse.ArgumentParser(add_help=False)
    attached.add_argument("--endpoints", type=Path, default=ENDPOINTS, help=f"the running system ({ENDPOINTS})")
    some = argparse.ArgumentParser(add_help=False)
    some.add_argument("--product", action="append", default=[], metavar="ID", help="only its partition; repeatable")
    judged = argparse.ArgumentParser(add_help=False)
    judged.add_argument("--journal", type=Path, metavar="FILE", help="what a driver was told: for S8 to S11")
    judged.add_argument("--canary", type=Path, metavar="FILE", help="words that must be nowhere, and files: for S19")
    judged.add_argument("--rule", action="append", default=[], metavar="NAME", help="only this one; repeatable")
    judged.add_argument("--json", action="store_true", help="for programs")

    commands = top.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", parents=[attached, some], help="the log of a sale as one file")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines; .gz is compressed")
    check = commands.add_parser("check", parents=[attached, some, judged], help="judge a file, or the log as it is now")
    check.add_argument("file", nargs="?", type=Path, metavar="FILE", help="what `replay export` wrote")
    verify = commands.add_parser(
        "verify", parents=[attached, judged], help="judge a running system: log, Postgres and the workers' tables"
    )
    verify.add_argument(
        "--payments",
        type=Path,
        metavar="FILE",
        help=f"the provider's books, for S21 ({provider_statement.NAME} beside endpoints)",
    )
    digest = commands.add_parser("digest", help="fold a file and say what comes out, by partition")
    digest.add_argument("file", type=Path, metavar="FILE")
    dead = commands.add_parser("dead-letters", help="what could not be read or acted on")
    kinds = dead.add_subparsers(dest="what", required=True)
    for name, what in (
        ("list", "all of them"),
        ("show", "one of them, whole"),
        ("redrive", "send its bytes once more to where they came from, once only"),
    ):
        kind = kinds.add_parser(name, parents=[attached], help=what)
        kind.add_argument("--json", action="store_true", help="for programs")
        if name != "list":
            kind.add_argument("source", metavar="SOURCE", help="as `list` names it: requests/3/17/0")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    # Hundreds of thousands of records and not one cycle among them: collections would only walk over them.
    gc.disable()
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments, Console())
    except (CannotCheck, journals.JournalUnreadable) as error:
        print(f"replay: {error}", file=sys.stderr)
        return report.EXIT_COULD_NOT_CHECK
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, console: Console) -> int:
    match arguments.command:
        case "export":
            return _export(arguments, console)
        case "check":
            if arguments.file is not None:
                evidence = _only(salefile.read(arguments.file), _partitions(arguments))
            else:
                evidence = _log(live.addresses(arguments.endpoints), console, _partitions(arguments))
            return _judge(arguments, console, evidence)
        case "verify":
            evidence, unasked = _everything(arguments.endpoints, console)
            if arguments.payments:
                evidence.payments = provider_statement.read(arguments.payments)
            return _judge(arguments, console, evidence, unasked)
        case "digest":
            return _digest(arguments.file)
        case "dead-letters":
            return _letters(arguments, console)
    return 0


def _letters(arguments: argparse.Namespace, console: Console) -> int:
    addresses = live.addresses(arguments.endpoints)
    all_of_them = _log(addresses, console, []).letters or []
    match arguments.what:
        case "list" if arguments.json:
            print(json.dumps([dead_letters.as_data(letter) for letter in all_of_them], indent=2))
        case "list":
            dead_letters.listed(console, all_of_them)
        case "show" if arguments.json:
            print(json.dumps(dead_letters.as_data(dead_letters.found(all_of_them, arguments.source)), indent=2))
        case "show":
            dead_letters.shown(console, dead_letters.found(all_of_them, arguments.source))
        case "redrive":
            done = redrive(addresses.kafka, dead_letters.found(all_of_them, arguments.source))
            print(json.dumps(done._asdict())) if arguments.json else dead_letters.told(console, done)
    return 0


def _export(arguments: argparse.Namespace, console: Console) -> int:
    addresses = live.addresses(arguments.endpoints)
    evidence = _log(addresses, console, _partitions(arguments))
    count = salefile.write(arguments.out, evidence, topic_ids=live.ids(addresses.kafka))
    console.print(f"{count:,} records in {arguments.out}.", highlight=False, soft_wrap=True)
    return 0


def _everything(endpoints: Path, console: Console) -> tuple[Evidence, CannotCheck | None]:
    """All there is, and why the workers' tables could not be asked for, if so.

    Workers stop at a log that cannot be right, so their silence must not keep it from being judged.
    """
    states, unasked = None, None
    addresses = live.addresses(endpoints)
    with console.status("asking the workers"):
        try:
            states = live.states(addresses.inventory)
        except CannotCheck as error:
            unasked = error
    with _bar(console) as tell:
        return live.system(endpoints, states, tell), unasked


def _judge(
    arguments: argparse.Namespace, console: Console, evidence: Evidence, unasked: CannotCheck | None = None
) -> int:
    """Run the rules and show what they found; the exit code.

    Raises:
        CannotCheck: `unasked`, if no rule is violated: what could not be looked at cannot be said to hold.
    """
    if arguments.journal is not None:
        evidence.journal = journals.read(arguments.journal)
    if arguments.canary is not None:
        evidence.canaries = canaries.read(arguments.canary)
    findings = []
    with console.status("judging") as status:
        for found in judge.judge(evidence, _rules(arguments.rule)):
            findings.append(found)
            status.update(f"judging: {found.name} {found.verdict}")
    if unasked is not None:
        if report.exit_code(findings) != report.EXIT_VIOLATED:
            raise unasked
        print(f"replay: {unasked}", file=sys.stderr)
    if arguments.json:
        print(report.as_json(evidence, findings))
    else:
        report.show(console, evidence, findings)
    return report.exit_code(findings)


def _rules(names: list[str]) -> tuple[Rule, ...]:
    if unknown := set(names) - {rule.NAME for rule in RULES}:
        raise CannotCheck(f"there is no rule {sorted(unknown)[0]}; there are {', '.join(r.NAME for r in RULES)}.")
    return tuple(rule for rule in RULES if not names or rule.NAME in names)


def _partitions(arguments: argparse.Namespace) -> "range | list[int]":
    return sorted({partition_of(product) for product in arguments.product}) or range(PARTITIONS)


def _only(evidence: Evidence, partitions: "range | list[int]") -> Evidence:
    evidence.partitions = {number: part for number, part in evidence.partitions.items() if number in partitions}
    if not evidence.partitions:
        raise CannotCheck(f"{evidence.origin} does not hold the partition of that product.")
    return evidence


def _log(addresses: live.Addresses, console: Console, partitions: "range | list[int]") -> Evidence:
    with _bar(console) as tell:
        return live.log(addresses.kafka, partitions, tell)


@contextmanager
def _bar(console: Console) -> Iterator[live.Tell]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading", total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"reading {what}", completed=done, total=total)

        yield tell


def _digest(file: Path) -> int:
    from replay.rules.s12_same_tables import fold

    for number, partition in sorted(salefile.read(file).partitions.items()):
        upto = partition.counting[-1].source_offset if partition.counting else -1
        said = fold(partition, upto)
        print(number, upto, said if isinstance(said, str) else f"{said.at}: {said.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
