"""The stack as a whole: what `up` starts in which order, and what the commands to the running supervisor mean.

The composition root of the package: everything else takes what it needs as arguments.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from devstack import components, control, endpoints, machine, orphans, processes
from devstack.failure import StackError
from devstack.layout import FILES, PARTS, Layout, read_json, write_atomically
from devstack.ports import Ports
from devstack.supervisor import ManagedProcess, ProcessSpec, Supervisor, run_once

INSTANCES_MAX = 12  # as many as there are partitions
PARENT_CHECK_S = 0.5
SCALE_WAIT_S = 90.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one `up` was asked for; `env` overrides the services' environment, also of those started later.

    `modules` names, by role, what runs in a service's place; also for restarts and for those started later.
    `proxied` are what services meet on their way to components.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(processes.SERVICES, 1))
    ports: dict[str, int] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    proxied: tuple[processes.ProxiedRoute, ...] = ()
    components_only: bool = False
    with_parent: bool = False


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[TextIO]:
    """The lock of the stack's folder, which one supervisor can have; raises StackError naming the other."""
    with layout.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = (read_json(layout.control) or {}).get("pid", "unknown")
            raise StackError(
                f"A stack already runs from {layout.root} (supervisor pid {pid}): "
                "`devstack status` shows it, `devstack down` stops it."
            ) from None
        yield lock


class Stack:
    """One run of the stack, from the first start to the last stop."""

    def __init__(self, layout: Layout, plan: Plan, tell: Callable[[ManagedProcess], None]) -> None:
        self._layout = layout
        self._plan = plan
        self._tell = tell
        self._ports = Ports(read_json(layout.ports) or {}, plan.ports)
        self._supervisor = Supervisor(layout, self._changed)
        self._addresses = processes.Addresses("", "", "")
        self._admin = ""
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._scaling = asyncio.Lock()

    async def run(self) -> None:
        """Start, stay until told to stop or something is given up (StackError), stop everything."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        server = await control.serve(self._layout, self._handle)
        told: list[asyncio.Task[Any]] = [asyncio.create_task(self._stop.wait())]
        if self._plan.with_parent:
            told.append(asyncio.create_task(_parent_gone()))
        starting = asyncio.create_task(self._start())
        given_up: asyncio.Future[Any] = self._supervisor.gave_up
        try:
            await asyncio.wait({starting, given_up, *told}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait({given_up, *told}, return_when=asyncio.FIRST_COMPLETED)
            if given_up.done():
                raise given_up.result()
        finally:
            for task in (starting, *told):
                task.cancel()
            await asyncio.gather(starting, *told, return_exceptions=True)
            await self._supervisor.stop_all()
            server.close()
            self._layout.endpoints.unlink(missing_ok=True)
            self._layout.control.unlink(missing_ok=True)

    async def _start(self) -> None:
        programs = await asyncio.to_thread(machine.find)
        layout, ports, env = self._layout, self._ports, processes.inherited()
        aside = {route.behind: route.port for route in self._plan.proxied if route.component == "kafka"}
        kafka = components.kafka(layout, programs.java, ports.take("kafka"), ports.take("kafka.controller"), env, aside)
        postgres = components.postgres(layout, programs.postgres, ports.take("postgres"), env)
        redis = components.redis(layout, programs.redis, ports.take("redis"), env)
        self._addresses = processes.Addresses(kafka.address, postgres.address, redis.address)
        specs = [
            self._service(role, index)
            for role in processes.SERVICES
            for index in range(0 if self._plan.components_only else self._plan.counts[role])
        ]
        self._remember_ports()
        topics, schema = processes.provision(self._addresses), processes.migrate()
        if self._plan.components_only:
            await self._supervisor.start([kafka, postgres, redis])
        else:
            self._admin = processes.admin_url(ports)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._bring(kafka, "provision", topics))
                    group.create_task(self._bring(postgres, "migrate", schema))
                    group.create_task(self._supervisor.start([redis]))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
            await self._supervisor.start(specs)
        self.ready.set()
        self._write_endpoints()

    def _service(self, role: str, index: int) -> ProcessSpec:
        plan = self._plan
        addresses = self._addresses.by(route for route in plan.proxied if route.role == role)
        among = {"STAMPEDE_GATEWAYS": str(max(1, plan.counts[role]))} if role == "gateway" else {}
        env = among | plan.env
        return processes.service(role, index, self._layout, self._ports, addresses, env, plan.modules.get(role))

    async def _bring(self, component: ProcessSpec, name: str, one_shot: tuple[str, ...]) -> None:
        """Start a component and, as soon as it is healthy, run what has to be made in it."""
        await self._supervisor.start([component])
        env = processes.one_shot_environment(self._layout, self._addresses, self._plan.env)
        await run_once(self._layout, name, one_shot, env, processes.ONE_SHOT_WAIT_S)

    def _remember_ports(self) -> None:
        write_atomically(self._layout.ports, json.dumps({**self._ports.remembered, **self._ports.chosen}, indent=1))

    def _changed(self, process: ManagedProcess) -> None:
        self._tell(process)
        if self.ready.is_set():
            self._write_endpoints()

    def _write_endpoints(self) -> None:
        managed = sorted(self._supervisor.processes.values(), key=lambda one: one.spec.name)
        live = [(one.spec.role, one.pid, one.spec.ops) for one in managed if one.pid is not None]
        endpoints.write(
            self._layout.endpoints,
            endpoints.Endpoints(
                gateway=[one.spec.address for one in managed if one.spec.role == "gateway"],
                admin=self._admin,
                admin_key=self._layout.secret("admin-key"),
                auth=self._plan.env.get("STAMPEDE_AUTH", "header"),
                kafka=self._addresses.kafka,
                postgres=self._addresses.postgres,
                redis=self._addresses.redis,
                topics=endpoints.topic_names(),
                processes=endpoints.by_role(live),
            ),
        )

    async def _handle(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "stop": self._told_to_stop,
            "scale": self._scale,
            "kill": self._kill,
            "restart": self._restart,
        }
        if command not in commands:
            raise StackError(f"The supervisor does not know `{command}`.")
        return await commands[command](**arguments)

    async def _status(self) -> dict[str, Any]:
        rows = [
            {
                "name": one.spec.name,
                "pid": one.pid,
                "state": one.state,
                "restarts": one.restarts,
                "port": one.spec.address.rsplit(":", 1)[-1].split("/")[0],
                "ops": one.spec.ops,
                "detail": one.detail,
            }
            for one in self._supervisor.processes.values()
        ]
        return {"ready": self.ready.is_set(), "pid": os.getpid(), "processes": rows}

    async def _told_to_stop(self) -> dict[str, Any]:
        self._stop.set()
        return {"pid": os.getpid()}

    async def _scale(self, counts: dict[str, int]) -> dict[str, Any]:
        if not self.ready.is_set():
            raise StackError("The stack is still starting: scale it once `devstack status` says that it is ready.")
        for role, count in counts.items():
            if role not in processes.SERVICES or not 0 <= count <= INSTANCES_MAX:
                raise StackError(
                    f"Cannot scale {role} to {count}: services are {', '.join(processes.SERVICES)}, "
                    f"0 to {INSTANCES_MAX} instances each."
                )
        async with self._scaling:
            added, removed = [], []
            for role, count in counts.items():
                names = {f"{role}-{index}" for index in range(count)}
                removed += [
                    n for n, one in self._supervisor.processes.items() if one.spec.role == role and n not in names
                ]
                added += [
                    self._service(role, index)
                    for index in range(count)
                    if f"{role}-{index}" not in self._supervisor.processes
                ]
            self._remember_ports()
            await self._supervisor.stop(removed)
            await self._supervisor.start(added)
            self._write_endpoints()
        return await self._status()

    async def _kill(self, name: str, number: int) -> dict[str, Any]:
        one = self._named(name)[0]
        return {"name": one, "pid": self._supervisor.send(one, signal.Signals(number))}

    async def _restart(self, name: str) -> dict[str, Any]:
        names = self._named(name)
        await self._supervisor.restart(names)
        return {"names": names}

    def _named(self, name: str) -> list[str]:
        """A process by its name (`inventory-1`), or all of a service (`inventory`)."""
        kept = self._supervisor.processes
        names = [name] if name in kept else [one for one, what in kept.items() if what.spec.role == name]
        if not names:
            raise StackError(f"There is no process or service {name}; there are {', '.join(kept) or 'none'}.")
        return names


async def _parent_gone() -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - no event tells of a parent's end on every system
        await asyncio.sleep(PARENT_CHECK_S)


def down(layout: Layout, wait_s: float = 60.0) -> str:
    """Stop the running stack, or what a killed supervisor left behind; says what it did."""
    if not layout.root.exists():
        return "Nothing was running."
    try:
        pid = control.call(layout, "stop")["pid"]
    except StackError:
        with held(layout):
            left = orphans.reap(layout.pids)
        return f"Ended {left} processes that a killed supervisor had left." if left else "Nothing was running."
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with contextlib.suppress(StackError), held(layout):
            return f"Stopped (supervisor pid {pid})."
        time.sleep(0.05)
    raise StackError(f"The supervisor (pid {pid}) did not end within {wait_s:.0f} s; its log is in {layout.logs}.")


def remove(layout: Layout) -> None:
    """Delete a stopped stack with all its data, also where Postgres had to keep its own elsewhere."""
    postgres = layout.root / "postgres"
    if postgres.is_symlink():
        shutil.rmtree(postgres.readlink(), ignore_errors=True)
        postgres.unlink()
    for part in PARTS:
        shutil.rmtree(layout.root / part, ignore_errors=True)
    for file in FILES:
        (layout.root / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        layout.root.rmdir()
