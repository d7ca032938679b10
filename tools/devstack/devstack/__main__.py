"""`python -m devstack`: the command line of the local stack. Every failure is one sentence and exit code 1."""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from devstack import console as shown
from devstack import control, orphans, processes, tokens
from devstack.endpoints import read
from devstack.failure import StackError
from devstack.layout import Layout, last_lines, rotate
from devstack.stack import SCALE_WAIT_S, Plan, Stack, down, held, remove

DETACHED_WAIT_S = 300.0
READY = "Ready"
PORT_FLAGS = {"kafka": "kafka", "postgres": "postgres", "redis": "redis", "gateway": "gateway-0"}


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="devstack", description="Kafka, Postgres, Redis and Stampede's services, here.")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--dir", type=Path, default=Path(".stack"), help="the stack's folder (.stack)")
    commands = top.add_subparsers(dest="command", required=True)

    up = commands.add_parser(
        "up", parents=[every], allow_abbrev=False, help="start everything and keep it running until Ctrl-C"
    )
    up.add_argument("--detach", action="store_true", help="return when everything is healthy; `down` stops it")
    up.add_argument("--components-only", action="store_true", help="Kafka, Postgres and Redis, no services")
    up.add_argument("--with-parent", action="store_true", help="stop when the process that started it has ended")
    up.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="for every service; repeatable")
    up.add_argument(
        "--module", action="append", default=[], metavar="SERVICE=MODULE", help="run a test build of a service"
    )
    up.add_argument(
        "--detour",
        action="append",
        default=[],
        metavar="SERVICE:COMPONENT=PORT[,BEHIND]",
        help="a service reaches kafka, postgres or redis by this port; the broker listens for it at BEHIND",
    )
    for role in processes.SERVICES:
        up.add_argument(f"--{role}", type=int, default=1, metavar="N", help=f"instances of {role} (1)")
    for flag in PORT_FLAGS:
        up.add_argument(f"--{flag}-port", type=int, metavar="PORT", help="instead of a free one")

    commands.add_parser("down", parents=[every], help="stop the running stack")
    status = commands.add_parser("status", parents=[every], help="what runs (exit code 1 unless all is ready)")
    status.add_argument("--json", action="store_true", help="for programs")
    scale = commands.add_parser("scale", parents=[every], help="more or fewer instances: scale inventory=2 gateway=2")
    scale.add_argument("counts", nargs="+", metavar="SERVICE=N")
    kill = commands.add_parser("kill", parents=[every], help="signal a process; what dies is started again")
    kill.add_argument("name", metavar="SERVICE[-N]")
    kill.add_argument("--signal", choices=("KILL", "STOP", "CONT", "TERM"), default="KILL")
    restart = commands.add_parser("restart", parents=[every], help="end gracefully, wait until healthy again")
    restart.add_argument("name", metavar="SERVICE[-N]")
    logs = commands.add_parser("logs", parents=[every], help="the logs, with prefixes")
    logs.add_argument("name", nargs="?", metavar="NAME", help="a process or a service; all by default")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("-n", "--lines", type=int, default=20, help="lines of each log (20)")
    commands.add_parser("env", parents=[every], help='the addresses for a shell: eval "$(devstack env)"')
    token = commands.add_parser("token", parents=[every], help="a token for a stack started with STAMPEDE_AUTH=jwt")
    token.add_argument("--user", required=True, metavar="NAME", help="who it is for")
    token.add_argument("--role", action="append", default=[], help="admin: may use the operators' port; repeatable")
    trace = commands.add_parser("trace", parents=[every], help="one purchase from HTTP to the row as a waterfall")
    trace.add_argument("--id", required=True, metavar="PURCHASE_ID", help="from the Location header")
    trace.add_argument("--spans", type=Path, metavar="FOLDER", help="of *.jsonl span files (those of the stack)")
    commands.add_parser("demo", parents=[every], help="a real sale over HTTP and its proof; DEMO_EXIT=1: then stop")
    commands.add_parser("clean", parents=[every], help="stop it and remove its folder with all data")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(given)
    try:
        return _run(arguments, given, Console())
    except StackError as error:
        print(f"devstack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, given: list[str], console: Console) -> int:  # noqa: PLR0912 - one a command
    layout = Layout(arguments.dir.resolve())
    match arguments.command:
        case "up":
            layout = Layout.at(arguments.dir)
            plan = plan_of(arguments)
            if arguments.detach:
                return _detach(layout, [option for option in given if option != "--detach"], console)
            return _up(layout, plan, console)
        case "down":
            console.print(down(layout), soft_wrap=True)
        case "clean":
            down(layout)
            remove(layout)
        case "status":
            reply = control.call(layout, "status")
            console.print_json(json.dumps(reply)) if arguments.json else console.print(shown.status_table(reply))
            healthy = all(row["state"] == "healthy" for row in reply["processes"])
            return 0 if reply["ready"] and healthy else 1
        case "scale":
            counts = dict(_pair(text, "SERVICE=N") for text in arguments.counts)
            numbers = {role: _number(role, count) for role, count in counts.items()}
            console.print(shown.status_table(control.call(layout, "scale", SCALE_WAIT_S, counts=numbers)))
        case "kill":
            number = signal.Signals[f"SIG{arguments.signal}"]
            killed = control.call(layout, "kill", name=arguments.name, number=int(number))
            console.print(f"{number.name} sent to {killed['name']} (pid {killed['pid']}).")
        case "restart":
            names = control.call(layout, "restart", SCALE_WAIT_S, name=arguments.name)["names"]
            console.print(f"Restarted and healthy: {', '.join(names)}.")
        case "logs":
            _logs(layout, console, arguments)
        case "env":
            found = read(layout.endpoints)
            for name, value in (("GATEWAY", found.gateway[0]), ("ADMIN", found.admin), ("ADMIN_KEY", found.admin_key)):
                print(f"export {name}={shlex.quote(value)}")
        case "token":
            print(tokens.token(layout, arguments.user, [role for role in arguments.role if role]))
        case "trace":
            _trace(arguments.spans or layout.spans, arguments.id, console)
        case "demo":
            return _demo(Layout.at(arguments.dir), console)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The options of `up` as a plan; raises StackError if one cannot be understood."""
    counts = {role: getattr(arguments, role.replace("-", "_")) for role in processes.SERVICES}
    ports = {name: getattr(arguments, f"{flag}_port") for flag, name in PORT_FLAGS.items()}
    modules = dict(_pair(text, "SERVICE=MODULE") for text in arguments.module)
    if unknown := modules.keys() - set(processes.SERVICES):
        raise StackError(f"There is no service {sorted(unknown)[0]}; there are {', '.join(processes.SERVICES)}.")
    return Plan(
        counts=counts,
        modules=modules,
        proxied=tuple(_detour(text) for text in arguments.detour),
        ports={name: port for name, port in ports.items() if port is not None},
        env=_chosen() | dict(_pair(text, "KEY=VALUE") for text in arguments.env),
        components_only=arguments.components_only,
        with_parent=arguments.with_parent,
    )


def _chosen() -> dict[str, str]:
    """How buyers are known is chosen in the shell too: STAMPEDE_AUTH=jwt."""
    return {name: os.environ[name] for name in ("STAMPEDE_AUTH",) if name in os.environ}


def _detour(text: str) -> processes.ProxiedRoute:
    form = "SERVICE:COMPONENT=PORT, and for kafka SERVICE:COMPONENT=PORT,BEHIND"
    way, ports = _pair(text, form)
    role, _, component = way.partition(":")
    numbers = ports.split(",")
    if role not in processes.SERVICES or component not in {"kafka", "postgres", "redis"}:
        raise StackError(f"`{text}` is not of the form {form}.")
    if len(numbers) != (2 if component == "kafka" else 1) or not all(number.isdecimal() for number in numbers):
        raise StackError(f"`{text}` is not of the form {form}.")
    return processes.ProxiedRoute(role, component, *map(int, numbers))


def _up(layout: Layout, plan: Plan, console: Console) -> int:
    with held(layout):
        shown.download(console)
        if left := orphans.reap(layout.pids):
            console.print(f"Ended {left} processes that a killed supervisor had left.")
        asyncio.run(_supervise(layout, plan, console))
    return 0


async def _supervise(layout: Layout, plan: Plan, console: Console) -> None:
    watcher = shown.Watcher(layout, console)
    watching = asyncio.create_task(watcher.watch_logs())
    ready = asyncio.create_task(_say_when_ready(stack := Stack(layout, plan, watcher.tell), layout, console))
    try:
        await stack.run()
    finally:
        for task in (watching, ready):
            task.cancel()
        await asyncio.gather(watching, ready, return_exceptions=True)


async def _say_when_ready(stack: Stack, layout: Layout, console: Console) -> None:
    started = time.monotonic()
    await stack.ready.wait()
    _say_ready(console, layout, started)


def _say_ready(console: Console, layout: Layout, started: float) -> None:
    gateways = ", ".join(read(layout.endpoints).gateway)
    console.print(
        f"[bold green]{READY}[/] after {time.monotonic() - started:.1f} s. "
        f"{f'Gateway: {gateways}. ' if gateways else ''}Everything to attach to: {layout.endpoints}",
        soft_wrap=True,
        highlight=False,
    )


def _detach(layout: Layout, options: list[str], console: Console) -> int:
    """Start a supervisor of its own session and wait until it is ready or has ended."""
    with held(layout):
        shown.download(console)  # here, where the bar can be seen
    log = layout.log("devstack")
    rotate(log)
    follower = shown.Follower()
    follower.new_lines(log)
    with log.open("ab") as out, layout.refusal.open("wb") as refusal:
        child = subprocess.Popen(
            [sys.executable, "-m", "devstack", *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=refusal,
            start_new_session=True,
        )
    started = time.monotonic()
    try:
        while time.monotonic() < started + DETACHED_WAIT_S:
            ended = child.poll() is not None
            for line in follower.new_lines(log):
                if not line.startswith(READY):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            if ended:
                said = "\n".join(last_lines(layout.refusal, 20)) or f"it said nothing; see {log}"
                raise StackError(said.removeprefix("devstack: "))
            with contextlib.suppress(StackError):
                if control.call(layout, "status")["ready"]:
                    _say_ready(console, layout, started)
                    return 0
            time.sleep(0.1)
    except KeyboardInterrupt:
        child.terminate()
        raise
    child.terminate()
    raise StackError(f"The stack was not ready within {DETACHED_WAIT_S:.0f} s and was stopped; see {layout.logs}.")


def _demo(layout: Layout, console: Console) -> int:
    """Start a stack unless one runs, sell, show the proof. What it started it also stops."""
    from devstack import demo

    started = not demo.running(layout)
    if started:
        _detach(layout, ["up", "--with-parent", f"--dir={layout.root}"], console)
    try:
        sold = demo.sell(layout, console)
        if started and not demo.exits_by_itself():
            demo.stay(layout, console)
    finally:
        if started:
            console.print(down(layout), soft_wrap=True)
    return 0 if sold else 1


def _logs(layout: Layout, console: Console, arguments: argparse.Namespace) -> None:
    found = sorted(layout.logs.glob("*.log"))
    if arguments.name is not None:
        found = [log for log in found if log.stem == arguments.name or log.stem.rpartition("-")[0] == arguments.name]
    if not found:
        raise StackError(f"There is no such log in {layout.logs}.")
    shown.show_logs(console, found, arguments.lines, arguments.follow)


def _trace(folder: Path, purchase_id: str, console: Console) -> None:
    from devstack.waterfall import print_waterfall, spans_of_purchase

    spans = spans_of_purchase(folder, purchase_id)
    if not spans:
        raise StackError(f"No span of purchase {purchase_id!r} in {folder}: was it sampled, and by this stack?")
    print_waterfall(spans, console)


def _pair(text: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise StackError(f"`{text}` is not of the form {form}.")
    return key, value


def _number(role: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise StackError(f"`{role}={text}`: the number of instances is missing.") from None


if __name__ == "__main__":
    sys.exit(main())
