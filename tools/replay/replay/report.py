"""What the rules found, for people (a table and one verdict line) and for programs (JSON). Judges nothing."""

import json
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from replay.evidence import Evidence
from replay.judge import Finding

EXIT_HOLDS, EXIT_VIOLATED, EXIT_COULD_NOT_CHECK = 0, 1, 2
SHOWN_MAX = 3  # violations of one rule in the table; --json has more
_NEEDED = {
    "database": "Postgres (replay verify)",
    "states": "the workers' tables (replay verify)",
    "journal": "what buyers were told (--journal FILE)",
    "payments": "the payment provider's books (replay verify --payments FILE)",
    "letters": "the dead letters (export them too)",
}


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when every rule that looked holds, 1 when one is violated, 2 when none could look."""
    verdicts = {finding.verdict for finding in findings}
    if "violated" in verdicts:
        return EXIT_VIOLATED
    return EXIT_HOLDS if "holds" in verdicts else EXIT_COULD_NOT_CHECK


def show(console: Console, evidence: Evidence, findings: Sequence[Finding]) -> None:
    """The table: rule, claim, how much it looked at, verdict; below it the first places that show a violation."""
    size = _size(evidence)
    console.print(f"{evidence.origin}: {_sentence(size)}", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("rule", style="bold")
    table.add_column("claim", ratio=1)
    table.add_column("looked at", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for found in findings:
        table.add_row(found.name, escape(found.claim), _looked(found), _verdict(found))
    console.print(table)
    for found in findings:
        for violation in found.first[:SHOWN_MAX]:
            said = f"[red]{found.name} {escape(violation.at)}[/]: {escape(violation.what)}"
            console.print(said, highlight=False, soft_wrap=True)
        if found.violations > SHOWN_MAX:
            console.print(f"[red]{found.name}[/] … and {found.violations - SHOWN_MAX:,} more", highlight=False)
    for need, sentence in _NEEDED.items():
        if unlooked := [found.name for found in findings if need in found.missing]:
            console.print(f"Not looked at: {', '.join(unlooked)}, which need {sentence}.", style="dim", soft_wrap=True)
    violated = [found.name for found in findings if found.verdict == "violated"]
    if violated:
        console.print(f"VERDICT: VIOLATED ({', '.join(violated)})", style="bold red")
    elif exit_code(findings) == EXIT_HOLDS:
        console.print("VERDICT: HOLDS", style="bold green")
    else:
        console.print("VERDICT: could not check", style="bold yellow")


def as_json(evidence: Evidence, findings: Sequence[Finding]) -> str:
    """The same for programs; an interface: fields are added, never changed."""
    verdict = {EXIT_HOLDS: "holds", EXIT_VIOLATED: "violated"}.get(exit_code(findings), "could not check")
    rules = [
        {
            "rule": found.name, "claim": found.claim, "verdict": found.verdict, "looked_at": found.looked,
            "things": found.looks_at, "violations": found.violations, "missing": found.missing,
            "seconds": round(found.seconds, 3),
            "first": [{"at": violation.at, "what": violation.what} for violation in found.first],
        }
        for found in findings
    ]  # fmt: skip
    whole = {"verdict": verdict, "origin": evidence.origin, "taken_at_ms": evidence.taken_at_ms, **_size(evidence)}
    return json.dumps(whole | {"rules": rules}, indent=1)


def _size(evidence: Evidence) -> dict[str, int]:
    parts = evidence.partitions.values()
    return {
        "requests": evidence.requested(),
        "request_records": sum(len(part.requests) for part in parts),
        "decisions_records": sum(len(part.decisions) for part in parts),
        "void_records": sum(len(part.void) for part in parts),
    }


def _sentence(size: dict[str, int]) -> str:
    return (
        f"{size['requests']:,} requests in {size['request_records']:,} records, "
        f"{size['decisions_records']:,} decisions records, {size['void_records']:,} of them void"
    )


def _looked(found: Finding) -> str:
    return "" if found.missing else f"{found.looked:,} {found.looks_at}"


def _verdict(found: Finding) -> str:
    match found.verdict:
        case "holds":
            return "[green]holds[/]"
        case "violated":
            return "[bold red]VIOLATED[/]"
        case "not looked at":
            return "[dim]-[/]"
