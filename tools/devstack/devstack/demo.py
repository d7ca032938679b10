"""`devstack demo`: a real sale over HTTP on the real stack, then the proof, as a table and one verdict line."""

import asyncio
import os
import signal
import statistics
import time

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devstack import control
from devstack.endpoints import read
from devstack.failure import StackError
from devstack.layout import Layout
from devstack.load_generator import LoadGenerator, Sale
from devstack.proof import Proof, prove
from replay.failure import CannotCheck
from replay.journal import Journal

SALE = {"units": 100, "buyers": 1_000, "declined_share": 0.1, "duplicates_share": 0.05}


def running(layout: Layout) -> bool:
    """Whether a stack is up and ready in this folder."""
    try:
        return bool(control.call(layout, "status")["ready"])
    except StackError:
        return False


def sell(layout: Layout, console: Console) -> bool:
    """Run the sale of the demo and show what came of it. True if everything agrees and every unit is sold."""
    endpoints = read(layout.endpoints)
    sale = Sale(**SALE, seed=time.time_ns() % 1_000_000)  # type: ignore[arg-type]
    console.print(
        f"\n[bold]{sale.buyers:,} buyers, {sale.units} units[/] of {sale.product_id} (seed {sale.seed}): "
        f"{sale.declined_share:.0%} of payments are declined, {sale.duplicates_share:.0%} send everything twice.",
        soft_wrap=True,
    )
    load = LoadGenerator(endpoints, sale)
    journal = asyncio.run(_sale(load, console))
    try:
        proof = asyncio.run(prove(layout.endpoints, journal))
    except CannotCheck as error:
        raise StackError(f"The sale cannot be checked: {error}") from None
    wrong = [*proof.wrong]
    if proof.confirmed != sale.units:
        wrong.append(f"{proof.confirmed} of {sale.units} units were sold within {sale.patience_s:.0f} s")
    console.print(_table(load, proof))
    for sentence in wrong[:10]:
        console.print(f"  [red]wrong:[/] {sentence}")
    console.print(f"VERDICT: {'FAIL' if wrong else 'PASS'}", style="bold red" if wrong else "bold green")
    example = next((a.purchase_id for a in journal.attempts if a.outcome == "released"), "")
    if example:
        console.print(f"One purchase from HTTP to the row and back: [bold]make trace ID={example}[/]", soft_wrap=True)
    return not wrong


async def _sale(load: LoadGenerator, console: Console) -> Journal:
    columns = (
        TextColumn("selling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("selling", total=load.sale.units, said="")

        def show(journal: Journal) -> None:
            turned_away = journal.count("rejected") + journal.count("sold_out")
            said = (
                f"{len(journal.attempts):,} attempts, {turned_away:,} turned away, {journal.count('released')} released"
            )
            progress.update(bar, completed=journal.count("confirmed"), said=said)

        journal = await load.run(show)
        show(journal)
    return journal


def _table(load: LoadGenerator, proof: Proof) -> Table:
    """One line per claim."""
    journal = load.journal
    table = Table(
        title="What the log, the database and the buyers say", box=SIMPLE, show_header=False, title_justify="left"
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    duplicates = [attempt for attempt in journal.logged if attempt.duplicate]
    same = sum(len({told.body for told in one.answers if told.status == 202}) <= 1 for one in duplicates)
    table.add_row("accepted", f"{len(journal.logged):,}", "durable before anyone was told")
    table.add_row("sold", f"{proof.confirmed:,}", "confirmed rows in Postgres")
    table.add_row(
        "rejected",
        f"{proof.rejected:,}",
        f"by the log; {journal.count('sold_out'):,} more refused early",
    )
    table.add_row("released and resold", f"{len(proof.released):,}", "payment declined, sold again")
    table.add_row("duplicates", f"{same} of {len(duplicates)}", "sent twice, answered as one")
    table.add_row("oversold", f"{proof.oversold}", "must be 0")
    table.add_row("log = Postgres = table", "NO" if proof.wrong else "yes", f"SHA-256 {proof.digest[:12]}…")
    if proof.last_durable_ms is not None:
        durable_s = proof.last_durable_ms / 1_000 - load.began_at
        table.add_row("last durable order", f"{durable_s:.2f} s", "after the doors opened")
    took = [told.answered_ms - told.sent_ms for one in journal.attempts for told in one.answers if told.status]
    if len(took) > 1:
        cuts = statistics.quantiles(took, n=100)
        table.add_row("answered in", f"{cuts[49]:.0f} / {cuts[98]:.0f} ms", "p50 / p99, decision included")
    return table


def stay(layout: Layout, console: Console) -> None:
    """Leave the stack up for the person to look at, until Ctrl-C (or the end of the stack)."""
    endpoints = read(layout.endpoints)
    console.print(
        f"\nThe stack stays up. Buyers: {endpoints.gateway[0]}/docs   Operators: {endpoints.admin}   "
        f"All of it: {layout.endpoints}\nCtrl-C stops it.",
        soft_wrap=True,
        highlight=False,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while running(layout):
        time.sleep(1)


def exits_by_itself() -> bool:
    """`DEMO_EXIT=1`: stop after the verdict, whose exit status is ours."""
    return os.environ.get("DEMO_EXIT", "") not in {"", "0"}
