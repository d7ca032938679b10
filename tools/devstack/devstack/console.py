"""What people see: state changes, lines of the logs worth a look, the status table, the download bar.

Must not change anything. Healthy lines stay in `.stack/logs/`; the console shows warnings and what changed.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from devstack import jars
from devstack.layout import Layout
from devstack.supervisor import ManagedProcess, State

COLOURS = ("cyan", "magenta", "blue", "green", "bright_cyan", "bright_magenta", "bright_blue", "bright_green")
STATE_STYLES = {"healthy": "green", "starting": "yellow", "restarting": "red", "failed": "bold red", "stopped": "dim"}
COMPONENT_TROUBLE = re.compile(r"\b(?:ERROR|FATAL|PANIC)\b(?!.*(?:starting up|shutting down))| # (?!WARNING)")
TAIL_BYTES_MAX = 256 * 1024
FOLLOW_EVERY_S = 0.25
ALREADY_SHOWN = frozenset({"ts", "level", "message", "service", "instance", "logger", "exception"})


def colour(name: str) -> str:
    """The same colour for the same name in every run."""
    return COLOURS[sum(name.encode()) % len(COLOURS)]


def prefixed(name: str, text: str, style: str = "") -> Text:
    """`name | text`, the name in its colour; `text` is never taken for markup."""
    return Text.assemble((f"{name:<15}| ", colour(name)), (text, style))


def readable(line: str) -> tuple[str, str]:
    """A log line for people and its level: JSON lines of the services become `time level message key=value`."""
    try:
        entry = json.loads(line)
        level, message = str(entry["level"]), str(entry["message"])
    except (ValueError, KeyError, TypeError):
        return line, ""
    rest = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ALREADY_SHOWN)
    clock = str(entry.get("ts", ""))[11:23]
    exception = f"\n{entry['exception']}" if "exception" in entry else ""
    return f"{clock} {level:<7} {message} {rest}".rstrip() + exception, level


def worth_showing(line: str, component: bool) -> bool:
    """Whether somebody who watches the stack should see it: warnings, and what a service says outside its log."""
    if component:
        return COMPONENT_TROUBLE.search(line) is not None
    _, level = readable(line)
    return level in {"warning", "error", "critical"} or (level == "" and line.strip() != "")


class Follower:
    """Reads what is added to log files. A partial last line waits for its end."""

    def __init__(self, from_end: bool = True) -> None:
        self._offsets: dict[Path, int] = {}
        self._from_end = from_end

    def new_lines(self, log: Path) -> list[str]:
        """The whole lines added since the last call; at most 256 KiB of them."""
        try:
            size = log.stat().st_size
        except FileNotFoundError:
            return []
        start = self._offsets.setdefault(log, size if self._from_end else 0)
        if size < start:  # rotated: a new file begins
            start = 0
        with log.open("rb") as file:
            file.seek(start)
            content = file.read(TAIL_BYTES_MAX)
        whole = content[: content.rfind(b"\n") + 1] if len(content) < TAIL_BYTES_MAX else content
        self._offsets[log] = start + len(whole)
        return whole.decode(errors="replace").splitlines()


class Watcher:
    """Tells on the console what happens to the processes of a running supervisor."""

    def __init__(self, layout: Layout, console: Console) -> None:
        self._layout = layout
        self._console = console
        self._since: dict[str, float] = {}
        self._components: dict[str, bool] = {}
        self._follower = Follower()

    def tell(self, process: ManagedProcess) -> None:
        """One line per change of state."""
        name, now = process.spec.name, time.monotonic()
        if name not in self._components:
            self._components[name] = process.spec.component
            self._follower.new_lines(self._layout.log(name))
        text = str(process.state)
        if process.state is State.STARTING:
            self._since[name] = now
            text += f", pid {process.pid}"
        elif process.state is State.HEALTHY:
            text += f" after {now - self._since.get(name, now):.1f} s"
        if process.detail:
            text += f": {process.detail.splitlines()[0]}"
        self._console.print(prefixed(name, text, STATE_STYLES[process.state]), soft_wrap=True)

    async def watch_logs(self) -> None:
        """Show warnings as they are written, until cancelled."""
        while True:
            for name, component in self._components.items():
                for line in self._follower.new_lines(self._layout.log(name)):
                    if worth_showing(line, component):
                        self._console.print(prefixed(name, readable(line)[0]), soft_wrap=True)
            await asyncio.sleep(FOLLOW_EVERY_S)


def download(console: Console) -> None:
    """Fetch Kafka's jars that are not there yet, with a bar; raises StackError."""
    folder = jars.cache_folder()
    wanted = jars.missing(jars.pinned(), folder)
    if not wanted:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Kafka's jars into {folder}", total=len(wanted))
        jars.fetch(wanted, folder, jars.repository_url(), lambda _jar: progress.advance(task))
    if not console.is_terminal:
        console.print(f"{len(wanted)} jars of Kafka are in {folder}, hashes checked.", soft_wrap=True)


def status_table(reply: dict[str, Any]) -> Table:
    """Every process: name, pid, state, restarts, port, ops URL."""
    title = f"supervisor pid {reply['pid']}, {'ready' if reply['ready'] else 'starting'}"
    table = Table("process", "pid", "state", "restarts", "port", "ops", title=title, title_justify="left")
    for row in reply["processes"]:
        state = Text(row["state"], STATE_STYLES[row["state"]])
        table.add_row(row["name"], str(row["pid"] or ""), state, str(row["restarts"]), row["port"], row["ops"])
    return table


def show_logs(console: Console, logs: Iterable[Path], count: int, follow: bool) -> None:
    """Print the last `count` lines of each log, then what is added until interrupted."""
    from devstack.layout import last_lines

    logs, follower = list(logs), Follower()
    for log in logs:
        follower.new_lines(log)
        for line in last_lines(log, count):
            console.print(prefixed(log.stem, readable(line)[0]), soft_wrap=True)
    while follow:
        for log in logs:
            for line in follower.new_lines(log):
                console.print(prefixed(log.stem, readable(line)[0]), soft_wrap=True)
        time.sleep(FOLLOW_EVERY_S)
