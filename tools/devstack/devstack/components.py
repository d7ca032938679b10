"""Kafka, Postgres and Redis: their settings, their first-time preparation, and the spec by which they are kept.

Must not start them; the supervisor does. The settings are those of a local stack: one broker, no replication, quick
restarts; durability is not given up (fsync of Postgres stays on).
"""

import asyncio
import base64
import os
import shutil
import signal
import uuid
from collections.abc import Mapping
from pathlib import Path

from devstack import jars, postgres_data, probes
from devstack.failure import StackError
from devstack.layout import Layout, write_atomically
from devstack.machine import Program
from devstack.supervisor import ProcessSpec, run_as

JVM_FLAGS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
# Java 24 warns about native access and Unsafe, which Kafka's compression libraries use.
JVM_24_FLAGS = ("--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow")
PREPARE_WAIT_S = 120.0
OWNER = "stampede"

KAFKA_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# Tests of failover use sessions shorter than Kafka's usual least of six seconds.
group.min.session.timeout.ms=1000
# A broker that was killed is let in again when its old session has ended: nine seconds by default.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
# What a topic need not keep any more goes within seconds, not within minutes.
log.retention.check.interval.ms=10000
"""


def kafka(
    layout: Layout,
    java: Program,
    port: int,
    controller_port: int,
    env: Mapping[str, str],
    aside: Mapping[int, int] | None = None,
) -> ProcessSpec:
    """The broker and its controller in one JVM. `aside`: ports where it listens too, each with the one it tells."""
    home = layout.root / "kafka"
    home.mkdir(mode=0o700, exist_ok=True)
    settings, cluster_file, formatted = home / "server.properties", home / "cluster-id", home / "formatted"
    if not cluster_file.exists():
        write_atomically(cluster_file, base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
    cluster_id = cluster_file.read_text()
    names = {f"ASIDE_{listens}": (listens, tells) for listens, tells in (aside or {}).items()}
    filled = KAFKA_SETTINGS.format(
        port=port,
        controller_port=controller_port,
        listeners="".join(f",{name}://127.0.0.1:{listens}" for name, (listens, _) in names.items()),
        advertised="".join(f",{name}://127.0.0.1:{tells}" for name, (_, tells) in names.items()),
        protocols="".join(f",{name}:PLAINTEXT" for name in names),
        data=home / "data",
    )
    write_atomically(settings, filled)
    logging = Path(__file__).parent / "data" / "log4j2.properties"
    folder = jars.cache_folder()
    jvm = (
        str(java.path),
        *JVM_FLAGS,
        *(JVM_24_FLAGS if java.major >= 24 else ()),
        f"-Dlog4j2.configurationFile={logging}",
        f"-Dkafka.logs.dir={layout.logs}",
        "-cp",
        os.pathsep.join(str(folder / jar.file_name) for jar in jars.pinned()),
    )

    async def format_storage() -> None:
        if not formatted.exists():
            # `=` because a random id may begin with a dash.
            which = (f"--cluster-id={cluster_id}", "--ignore-formatted", "-c", str(settings))
            await _prepare("Formatting Kafka's storage", (*jvm, "kafka.tools.StorageTool", "format", *which), env)
            formatted.touch()

    return ProcessSpec(
        name="kafka",
        role="kafka",
        command=(*jvm, "kafka.Kafka", str(settings)),
        env=env,
        probe=probes.kafka(port, cluster_id),
        address=f"127.0.0.1:{port}",
        component=True,
        stop_wait_s=20.0,
        prepare=format_storage,
    )


def postgres(layout: Layout, program: Program, port: int, env: Mapping[str, str]) -> ProcessSpec:
    """The database server with one database and its owner, reached by password over loopback only."""
    user = postgres_data.unprivileged_user()
    home = postgres_data.home(layout, user)
    binary = postgres_data.reachable_binary(program.path, home, user)
    data = home / "data"
    secret = layout.secret("postgres")
    dsn = f"postgresql://{OWNER}:{secret}@127.0.0.1:{port}/{OWNER}"

    async def make_ready() -> None:
        version = data / "PG_VERSION"
        if not version.exists():
            await _initialise(data, binary, user, secret, env)
        elif version.read_text().strip() != str(program.major):
            raise StackError(
                f"The data in {data} was made by Postgres {version.read_text().strip()}, but this is "
                f"{program.major} ({binary}): install that version or start afresh without {layout.root}."
            )
        await asyncio.to_thread(postgres_data.clear_remains, data)

    return ProcessSpec(
        name="postgres",
        role="postgres",
        command=(
            *(str(binary), "-D", str(data), "-p", str(port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        ),
        env=env,
        probe=probes.postgres(dsn, data),
        address=dsn,
        component=True,
        stop_signal=signal.SIGINT,  # fast shutdown: sessions are ended, data is flushed
        stop_wait_s=20.0,
        cwd=home,
        user=user,
        prepare=make_ready,
    )


def redis(layout: Layout, program: Program, port: int, env: Mapping[str, str]) -> ProcessSpec:
    """The server of the rate limiter: it keeps its data in an append-only file."""
    home = layout.root / "redis"
    home.mkdir(mode=0o700, exist_ok=True)
    secret = layout.secret("redis")
    settings = home / "redis.conf"
    write_atomically(
        settings,
        f'bind 127.0.0.1\nport {port}\ndir "{home}"\nrequirepass {secret}\nsave ""\n'
        "appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\ndaemonize no\n",
    )
    url = f"redis://:{secret}@127.0.0.1:{port}/0"
    return ProcessSpec(
        name="redis",
        role="redis",
        command=(str(program.path), str(settings)),
        env=env,
        probe=probes.redis(url),
        address=url,
        component=True,
        cwd=home,
    )


async def _initialise(data: Path, binary: Path, user: str | None, secret: str, env: Mapping[str, str]) -> None:
    """Make the cluster and its database beside their place and move them there whole."""
    new, password = data.with_name("data.new"), data.with_name("password")
    await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
    write_atomically(password, secret)
    if user is not None:
        shutil.chown(password, user)
    options = ("-U", OWNER, "--auth=scram-sha-256", f"--pwfile={password}", "--no-locale", "--encoding=UTF8")
    initdb = (str(binary.with_name("initdb")), "-D", str(new), *options)
    try:
        await _prepare("Making the Postgres data folder (initdb)", initdb, env, user)
        create = f"CREATE DATABASE {OWNER} OWNER {OWNER};\n".encode()
        alone = (str(binary), "--single", "-D", str(new), "postgres")
        await _prepare("Making the Postgres database", alone, env, user, create)
    finally:
        password.unlink()
    new.rename(data)


async def _prepare(
    what: str, command: tuple[str, ...], env: Mapping[str, str], user: str | None = None, stdin: bytes = b""
) -> None:
    child = await asyncio.create_subprocess_exec(
        *command,
        env=dict(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        **run_as(user),
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(stdin), PREPARE_WAIT_S)
    except TimeoutError:
        raise StackError(f"{what} took longer than {PREPARE_WAIT_S:.0f} s: is the disk full or very slow?") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        tail = "\n  ".join(said.decode(errors="replace").strip().splitlines()[-8:])
        raise StackError(f"{what} failed with exit code {child.returncode}:\n  {tail}")
