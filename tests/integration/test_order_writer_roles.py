"""Who may do what in Postgres, what stands on the roles, and the ways to reach one: TLS, a pooler's rules."""

import asyncio
import contextlib
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eventlog.reader import Progress
from gateway.read_side.postgres import Store
from gateway.read_side.purchase_memory import RememberedIds
from order_writer.consume import decisions
from order_writer.consume.progress_consumer import Move
from order_writer.postgres.migrate import migrate
from order_writer.postgres.pool import DatabaseWrong, Pool, open_pool
from order_writer.postgres.roles import Role, parse_role
from order_writer.saga.decision_batch import Batch
from order_writer.unit_of_work import UnitsOfWork
from stampede_schemas.identifiers import Position, PurchaseId, RequestId
from stampede_schemas.order_commands import CancelRequested
from tests.support.builders.orders import Installation, installation, listed, rejected, released, reserved, until
from tests.support.processes.stack import LocalStack

pytestmark = pytest.mark.own_servers  # roles belong to the whole server, and it is taught TLS

FREED_S_MAX = 12.0  # the limit is 5 s, and the successor may give up waiting for the lock just before and come again


class Place(Installation):
    """An installation with roles of its own (roles belong to the whole server)."""

    @property
    def writer_role(self) -> Role:
        """Who writes here."""
        return Role(f"w_{self.postgres.rpartition('/')[2]}", "w/p:w")

    @property
    def reader_role(self) -> Role:
        """Who reads here."""
        return Role(f"r_{self.postgres.rpartition('/')[2]}", "r-pw")

    def dsn(self, role: Role) -> str:
        """The same database as that role."""
        password = role.password.replace("/", "%2F").replace(":", "%3A")
        return f"postgresql://{role.name}:{password}@{self.postgres.rpartition('@')[2]}"


@pytest.fixture
async def place(servers: LocalStack) -> AsyncIterator[Place]:
    """New topics, new tables, the roles made twice: that is how it is done at every upgrade."""
    async with installation(servers.kafka, servers.postgres) as made:
        place = Place(made.kafka, made.postgres, made.log)
        for _ in range(2):
            assert await migrate(place.postgres, place.writer_role, place.reader_role) == []
        yield place
        for role in (place.writer_role, place.reader_role):
            await place.rows(f"DROP OWNED BY {role.name}")
            await place.rows(f"DROP ROLE {role.name}")


async def refused(dsn: str, *statements: str) -> list[str]:
    """Those that Postgres refuses for want of rights."""
    connection = await asyncpg.connect(dsn)
    found = []
    try:
        for statement in statements:
            with contextlib.suppress(asyncpg.UndefinedObjectError):
                try:
                    async with connection.transaction():
                        await connection.execute(statement)
                except asyncpg.InsufficientPrivilegeError:
                    found.append(statement)
    finally:
        await connection.close()
    return found


FORBIDDEN = (
    "DROP TABLE purchases",
    "TRUNCATE purchases",
    "DELETE FROM purchases",
    "DELETE FROM progress",
    "DELETE FROM products",
    "ALTER TABLE purchases ADD COLUMN mine text",
    "CREATE TABLE mine (n int)",
    "CREATE ROLE mine",
    "UPDATE alembic_version SET version_num = '0'",
    "ALTER TABLE purchases DISABLE TRIGGER ALL",
)
READER_FORBIDDEN = (
    "INSERT INTO purchases DEFAULT VALUES",
    "UPDATE purchases SET status = 'confirmed'",
    "UPDATE products SET available = 0",
    "UPDATE progress SET next_offset = 0",
    "DELETE FROM installation",
    "SELECT * FROM outbox",
    "INSERT INTO outbox (messages) VALUES ('')",
    "SELECT * FROM payments",
    "SELECT * FROM pending_commands",
)


async def test_the_writer_cannot_drop_and_the_reader_cannot_write(place: Place) -> None:
    """What a stolen password is good for ends there."""
    assert await refused(place.dsn(place.writer_role), *FORBIDDEN) == [*FORBIDDEN]
    assert await refused(place.dsn(place.reader_role), *FORBIDDEN, *READER_FORBIDDEN) == [*FORBIDDEN, *READER_FORBIDDEN]
    assert await refused(place.postgres, "CREATE TABLE mine (n int)") == []


async def test_a_password_reaches_the_server_as_a_verifier_only(place: Place) -> None:
    """A log of all statements, or who reads pg_authid, does not learn it; a wrong one is refused."""
    kept = str(await place.value("SELECT rolpassword FROM pg_authid WHERE rolname = $1", place.writer_role.name))
    assert kept.startswith("SCRAM-SHA-256$4096:")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(place.dsn(place.writer_role._replace(password="guess")))
    changed = place.writer_role._replace(password="another")
    await migrate(place.postgres, changed)
    await (await asyncpg.connect(place.dsn(changed))).close()


@pytest.mark.parametrize("text", ["Capital", "a b", "x; DROP TABLE purchases", "", "ok:p%C3%A4sse", "ok:\n"])
def test_a_role_that_cannot_be_one_is_refused(text: str) -> None:
    """Before anything is sent to Postgres."""
    with pytest.raises(ValueError, match="name:password"):
        parse_role(text)


async def test_a_migrator_that_may_make_no_roles_is_told_what_to_do(place: Place) -> None:
    """A managed database: roles that exist are given their rights; limits that cannot be set are named."""
    owner = Role(f"o_{secrets.token_hex(4)}", "o")
    database = place.postgres.rpartition("/")[2]
    await place.rows(f"CREATE ROLE {owner.name} LOGIN PASSWORD 'o'")
    other = f"{database}_owned"
    await place.rows(f"CREATE DATABASE {other} OWNER {owner.name}")
    dsn = f"{place.dsn(owner).rpartition('/')[0]}/{other}"
    try:
        with pytest.raises(DatabaseWrong, match="make nobody_yet by other means"):
            await migrate(dsn, Role("nobody_yet", "x"))
        assert await place.value("SELECT count(*) FROM pg_roles WHERE rolname = 'nobody_yet'") == 0
        said = await migrate(dsn, place.writer_role._replace(password=""), place.reader_role._replace(password=""))
        assert any("lock_timeout" in sentence for sentence in said)
        writer = f"{place.dsn(place.writer_role).rpartition('/')[0]}/{other}"
        assert await refused(writer, "SELECT FROM purchases", "DROP TABLE purchases") == ["DROP TABLE purchases"]
    finally:
        await place.rows(f"DROP DATABASE {other} WITH (FORCE)")
        await place.rows(f"DROP ROLE {owner.name}")


async def test_a_whole_sale_with_no_more_rights_than_the_roles_have(place: Place) -> None:
    """Sold, declined, given back, cancelled, expired, published: the writer needs nothing that it was not given."""
    [_, sale] = place.log.append(
        0,
        [listed()],
        [
            reserved("ok", 1),
            reserved("bad", 2, method="declined"),
            reserved("held", 3, method="unknown", hold_ms=200),
            reserved("gone", 4, method="unknown"),
            rejected("late"),
        ],
    )
    async with place.writer(postgres=place.dsn(place.writer_role)) as task:

        async def ended() -> bool:
            return await place.statuses() == {
                "ok": "confirmed", "bad": "released", "held": "released", "gone": "released", "late": "rejected",
            }  # fmt: skip

        await until(lambda: place.value("SELECT true FROM purchases WHERE purchase_id = 'gone'"), "rows", task=task)
        for name in ("gone", "not-there-yet"):
            place.command(CancelRequested(request_id=RequestId(name), purchase_id=PurchaseId(name), actor="operator"))
        await until(ended, "all ended", 40, task)
        place.log.append(0, [released("bad", Position(0, sale, 1)), listed(stock=7)])
        await until(lambda: place.value("SELECT true FROM products WHERE stock = 7"), "listed again", task=task)
        await until(lambda: place.value("SELECT count(*) = 0 FROM outbox"), "published", task=task)
    reader = Store(place.dsn(place.reader_role))
    await reader.open()
    try:
        ids = RememberedIds()
        assert len((await reader.snapshot(ids)).products) == 1
        assert await reader.claim_identity("one") == await reader.claim_identity("two") == "one"
        rows, progress = await reader.rows([PurchaseId("bad")])
        known = rows[PurchaseId("bad")]
        assert known.status == "released"
        assert known.position.offset <= progress[0]
        assert ids.may_hold(PurchaseId("bad"))
        assert not ids.may_hold(PurchaseId("late"))
        assert ids.may_know(0, PurchaseId("late"))
    finally:
        await reader.close()


async def test_a_transaction_that_a_frozen_writer_holds_is_ended(place: Place) -> None:
    """Between UPDATE and COMMIT, by limits of its session or, behind a pooler, of its role: the successor goes on."""
    for partition in (0, 1):
        place.log.append(partition, [listed(f"shoe-{partition}")])
    ways = {0: (place.postgres, False), 1: (place.dsn(place.writer_role), True)}
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    async with place.writer(payment="none") as task:
        await until(
            lambda: place.value("SELECT count(*) = 2 FROM progress WHERE next_offset = 1"), "running", task=task
        )
        pools = {n: await open_pool(dsn, "frozen", pooled=pooled) for n, (dsn, pooled) in ways.items()}
        for pool in pools.values():
            assert await pool.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
            assert await pool.fetchval("SHOW lock_timeout") == "5s"
            assert await pool.fetchval("SHOW statement_timeout") == "20s"
        frozen = [asyncio.create_task(_freeze(pool, n, over)) for n, pool in pools.items()]
        free = "SELECT count(*) FROM (SELECT FROM progress WHERE partition < 2 FOR UPDATE SKIP LOCKED) AS free"
        await until(lambda: _is(place, free, 0), "both hold their progress")
        began = loop.time()
        for partition in (0, 1):
            place.log.append(partition, [reserved(f"p{partition}", 1, product_id=f"shoe-{partition}")])
        await until(lambda: _is(place, "SELECT count(*) FROM purchases", 2), "the successor", 25, task)
        assert 2 < loop.time() - began < FREED_S_MAX
        over.set()  # they thaw, and try to commit
        for ended in await asyncio.gather(*frozen, return_exceptions=True):
            assert isinstance(ended, asyncpg.PostgresError | asyncpg.InterfaceError | OSError)
        for pool in pools.values():
            pool.terminate()
    assert await place.value("SELECT count(*) FROM progress WHERE next_offset = 2") == 2


async def _is(place: Place, query: str, wanted: int) -> bool:
    return await place.value(query) == wanted


async def _freeze(pool: Pool, partition: int, thaw: asyncio.Event) -> None:
    """Move a partition on, as a writer does first of all, send nothing more for a while, then try to commit."""
    async with UnitsOfWork(pool, lambda unit, started: None).open() as unit:
        [at] = await unit.connection.fetch("SELECT * FROM progress WHERE partition = $1", partition)
        to = Progress(at["next_offset"] + 1, at["source_offset"] + 1, at["load"], at["anchor"] + 1)
        await decisions.apply(unit, {partition: Move(at["next_offset"], to)}, Batch(), unpaid=True)
        await thaw.wait()


async def test_nothing_is_prepared_for_later_behind_a_pooler(place: Place) -> None:
    """All that a writer and a gateway do works without prepared statements and session settings, and leaves none."""
    place.log.append(0, [listed()], [reserved("ok", 1), reserved("bad", 2, method="declined")])
    dsn = place.dsn(place.writer_role)
    async with place.writer(postgres=dsn, postgres_pooled=True) as task:
        ended = "SELECT count(*) = 2 FROM purchases WHERE status IN ('confirmed', 'released')"
        await until(lambda: place.value(ended), "both ended", 30, task)
    pool = await open_pool(dsn, "looking", pooled=True)
    try:
        async with pool.acquire() as connection:
            for _ in range(3):
                assert await connection.fetchval("SELECT count(*) FROM purchases WHERE quantity = $1", 2) == 2
            assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
            assert await connection.fetchval("SHOW application_name") == "order-writer/looking"
    finally:
        pool.terminate()
    reader = Store(place.dsn(place.reader_role), "looking", pooled=True)
    await reader.open()
    try:
        for _ in range(3):
            rows, _ = await reader.rows([PurchaseId(name) for name in ("ok", "bad", "not there")])
            assert {name: row.fingerprint for name, row in rows.items()} == dict.fromkeys(("ok", "bad"), "f" * 16)
        assert len((await reader.snapshot(RememberedIds())).products) == 1
        named = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gateway/looking'"
        assert await place.value(named) == 1
    finally:
        await reader.close()


@pytest.fixture(scope="module")
def certificate(servers: LocalStack) -> Iterator[Path]:
    """A certificate for 127.0.0.1 in its own name; the server speaks TLS with it until the module's end."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    data = (servers.layout.root / "postgres").resolve() / "data"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files = {
        "server.crt": made.public_bytes(encoding),
        "server.key": key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain),
    }
    for file, content in files.items():
        (data / file).write_bytes(content)
        (data / file).chmod(0o600)
        os.chown(data / file, data.stat().st_uid, data.stat().st_gid)
    kept = servers.layout.root / "ca.crt"
    kept.write_bytes(files["server.crt"])
    asyncio.run(_tls(servers.postgres, on=True))  # the Postgres that comes along has TLS, as every packaged one has
    yield kept
    asyncio.run(_tls(servers.postgres, on=False))
    kept.unlink()


async def _tls(dsn: str, *, on: bool) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"ALTER SYSTEM SET ssl = {'on' if on else 'off'}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


async def test_tls_by_the_parameters_of_the_url(place: Place, certificate: Path) -> None:
    """`sslmode` and `sslrootcert` as a managed database gives them, for migration, writer and gateway alike."""
    verified = f"?sslmode=verify-full&sslrootcert={certificate}"
    await migrate(place.postgres + verified)
    for parameters in ("?sslmode=require", verified):
        pool = await open_pool(place.dsn(place.writer_role) + parameters, "tls")
        try:
            assert await pool.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        finally:
            pool.terminate()
    reader = Store(place.dsn(place.reader_role) + verified)
    await reader.open()
    try:
        assert await reader.claim_identity("mine") == "mine"
    finally:
        await reader.close()


async def test_a_certificate_that_is_not_known_is_refused(place: Place, certificate: Path) -> None:
    """Not the one that was named, or another host's name: one sentence, and nothing is sent."""
    named = place.postgres.replace("127.0.0.1", "localhost")
    with pytest.raises(DatabaseWrong, match=r"localhost|certificate"):
        await open_pool(f"{named}?sslmode=verify-full&sslrootcert={certificate}", "tls")
    with pytest.raises(DatabaseWrong, match="certificate"):
        await open_pool(
            f"{place.postgres}?sslmode=verify-full&sslrootcert={ssl.get_default_verify_paths().openssl_cafile}", "tls"
        )
