"""The pure rules of the local stack: ports, backoff, orphans, what the console shows, what the file says."""

import json
import signal
from pathlib import Path

import pytest

from devstack import console, endpoints, machine, orphans, processes
from devstack.__main__ import parser, plan_of
from devstack.backoff import Backoff
from devstack.failure import StackError
from devstack.layout import Layout, read_json, write_atomically
from devstack.orphans import PidFile
from devstack.ports import Ports

ADDRESSES = processes.Addresses("127.0.0.1:1", "postgresql://p", "redis://r")


def ports(busy: set[int], remembered: dict[str, int] | None = None, configured: dict[str, int] | None = None) -> Ports:
    """Ports where `busy` ones are taken and free ones are tried from 20000 up."""
    return Ports(remembered or {}, configured or {}, lambda port: port not in busy, lambda: iter(range(20000, 20010)))


def test_a_port_is_remembered_while_it_is_free() -> None:
    """The port of the last run is taken again, and another one if somebody took it meanwhile."""
    assert ports(set(), {"kafka": 20005}).take("kafka") == 20005
    assert ports({20005}, {"kafka": 20005}).take("kafka") == 20000


def test_no_two_listeners_share_a_port() -> None:
    """Neither a port chosen before nor one remembered for a process that is not running yet is given away."""
    chosen = ports({20001}, {"gateway-1": 20000})
    assert chosen.take("kafka") == 20002
    assert chosen.take("redis") == 20003
    assert chosen.take("kafka") == 20002
    assert chosen.take("gateway-1") == 20000


def test_a_configured_port_is_taken_or_refused_in_one_sentence() -> None:
    """A configured port wins over a remembered one; a busy one says which option to change."""
    assert ports(set(), {"gateway-0": 20005}, {"gateway-0": 8080}).take("gateway-0") == 8080
    with pytest.raises(StackError, match=r"Port 8080, configured for gateway-0, is used .* --gateway-port"):
        ports({8080}, configured={"gateway-0": 8080}).take("gateway-0")


def test_no_free_port_says_so() -> None:
    """Every candidate taken ends in a sentence, not in a loop."""
    with pytest.raises(StackError, match="No free port"):
        ports(set(range(20000, 20010))).take("kafka")


def test_backoff_doubles_up_to_its_limit_and_then_gives_up() -> None:
    """Ends without having been healthy wait 0.2, 0.4, 0.8, 1.6 s; the fifth is the last."""
    state, delays = Backoff(), []
    while not (state := state.after_exit(was_healthy=False, up_s=1.0)).exhausted:
        delays.append(state.delay_s)
    assert delays == [0.2, 0.4, 0.8, 1.6]
    assert Backoff(failures=30).delay_s == 5.0


@pytest.mark.parametrize(("was_healthy", "up_s"), [(True, 0.1), (False, 30.0)])
def test_having_been_of_use_wipes_the_record(was_healthy: bool, up_s: float) -> None:
    """A process that was healthy, or up for 30 s, is started again at once however often it failed before."""
    state = Backoff(failures=4).after_exit(was_healthy, up_s)
    assert not state.exhausted
    assert state.delay_s == 0.2


RECORD = PidFile(pid=7, born=1000.0, command=("/usr/bin/postgres", "-D", "data"), component=True, stop=signal.SIGINT)


@pytest.mark.parametrize(
    ("born", "command", "ours"),
    [
        (1000.4, ["/usr/bin/postgres", "-D", "data"], True),
        (1000.0, ["postgres: rewritten its title"], True),
        (1060.0, ["/usr/bin/postgres", "-D", "data"], False),  # the pid was reused by another Postgres
        (1000.0, ["/usr/bin/editor", "postgres"], False),  # and by another program at the same time
        (1000.0, [], False),  # a kernel thread or a zombie
    ],
)
def test_only_the_process_that_was_started_is_an_orphan_of_ours(born: float, command: list[str], ours: bool) -> None:
    """Birth and program must both be those of the pid file."""
    assert orphans.is_ours(RECORD, born, command) is ours


def test_a_reaped_folder_leaves_strangers_alone(tmp_path: Path) -> None:
    """A pid file that names a living process of another birth ends nothing and is removed."""
    orphans.record(tmp_path, "mine", 1, ["init"], component=False, stop=signal.SIGTERM)
    content = read_json(tmp_path / "mine.json")
    write_atomically(tmp_path / "mine.json", json.dumps({**content, "born": 0.0}))
    write_atomically(tmp_path / "cut.json", '{"pid": 1, ')
    assert orphans.reap(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "component", "shown"),
    [
        ('{"ts": "2026-01-01T10:00:00.123", "level": "info", "message": "sold"}', False, False),
        ('{"ts": "2026-01-01T10:00:00.123", "level": "warning", "message": "slow"}', False, True),
        ("Traceback (most recent call last):", False, True),
        ("LOG:  database system is ready", True, False),
        ("FATAL:  could not write", True, True),
        ("FATAL:  the database system is starting up", True, False),
        ("2026-01-01T10:00:00 ERROR Partition: disk full", True, True),
    ],
)
def test_the_console_shows_warnings_only(line: str, component: bool, shown: bool) -> None:
    """Healthy lines stay in the files; a service's word outside its log is shown."""
    assert console.worth_showing(line, component) is shown


def test_log_lines_are_made_readable() -> None:
    """Time, level, message, then the fields."""
    line = '{"ts": "2026-01-01T10:00:00.123+00:00", "level": "info", "message": "sold", "units": 3, "service": "x"}'
    assert console.readable(line) == ("10:00:00.123 info    sold units=3", "info")


@pytest.mark.parametrize(
    ("answer", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 1),
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15),
        ("Redis server v=7.0.15 sha=00000000:0", 7),
        ("Valkey server v=9.1.2 sha=00000000:1", 9),
        ("no version here", None),
    ],
)
def test_versions_are_read_from_what_programs_say(answer: str, major: int | None) -> None:
    """An old program found on the machine is told from a usable one."""
    assert machine.major_version(answer) == major


def test_a_service_gets_its_addresses_ports_and_overrides(tmp_path: Path) -> None:
    """The environment names what to reach and where to listen; what the person sets with --env wins."""
    layout = Layout.at(tmp_path)
    overrides = {"STAMPEDE_LIMITS": "user:token_bucket:1/s"}
    spec = processes.service("gateway", 1, layout, ports(set()), ADDRESSES, overrides)
    assert spec.command[-2:] == ("-m", "gateway")
    assert spec.address == f"http://127.0.0.1:{spec.env['STAMPEDE_HTTP_PORT']}"
    assert spec.ops == f"http://127.0.0.1:{spec.env['STAMPEDE_OPS_PORT']}"
    assert spec.env["STAMPEDE_INSTANCE"] == "gateway-1"
    assert spec.env["STAMPEDE_KAFKA"] == "127.0.0.1:1"
    assert spec.env["STAMPEDE_LIMITS"] == "user:token_bucket:1/s"
    assert layout.secret("admin-key") not in spec.env.values()
    taken = [spec.env[f"STAMPEDE_{name}_PORT"] for name in ("HTTP", "ADMIN", "OPS")]
    assert len(set(taken)) == 3


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """The same secret at every start, in a file of mode 0600."""
    layout = Layout.at(tmp_path)
    assert layout.secret("admin-key") == layout.secret("admin-key") != layout.secret("identity-key")
    assert (layout.root / "secrets" / "admin-key").stat().st_mode & 0o777 == 0o600


def test_endpoints_list_every_role_and_come_back_as_written(tmp_path: Path) -> None:
    """Roles without a process have an empty list; components have no ops URL."""
    by_role = endpoints.by_role([("gateway", 5, "http://o"), ("kafka", 6, "")])
    assert by_role == {
        **{role: [] for role in endpoints.ROLES},
        "gateway": [{"pid": 5, "ops": "http://o"}],
        "kafka": [{"pid": 6}],
    }
    written = endpoints.Endpoints(["http://g"], "http://a", "key", "header", "k", "p", "r", {"orders": "o"}, by_role)
    endpoints.write(tmp_path / "endpoints.json", written)
    assert endpoints.read(tmp_path / "endpoints.json") == written
    with pytest.raises(StackError, match="start the stack first"):
        endpoints.read(tmp_path / "absent.json")


def test_the_options_of_up_become_a_plan() -> None:
    """Counts, ports and environment as given; nonsense is one sentence."""
    plan = plan_of(parser().parse_args(["up", "--inventory=2", "--gateway-port=8080", "--env", "STAMPEDE_X=a=b"]))
    assert plan.counts == {"inventory": 2, "order-writer": 1, "ratelimit": 1, "gateway": 1}
    assert plan.ports == {"gateway-0": 8080}
    assert plan.env == {"STAMPEDE_X": "a=b"}
    with pytest.raises(StackError, match="`X` is not of the form KEY=VALUE"):
        plan_of(parser().parse_args(["up", "--env", "X"]))


def test_a_test_build_runs_in_the_place_of_a_service(tmp_path: Path) -> None:
    """`--module` names what is run for a service, and nothing else of it changes; an unknown service is refused."""
    plan = plan_of(parser().parse_args(["up", "--module", "inventory=tests.chaos.builds.inventory"]))
    assert plan.modules == {"inventory": "tests.chaos.builds.inventory"}
    layout = Layout.at(tmp_path)
    shipped = processes.service("inventory", 0, layout, ports(set()), ADDRESSES, {})
    built = processes.service("inventory", 0, layout, ports(set()), ADDRESSES, {}, plan.modules["inventory"])
    assert (shipped.command[-1], built.command[-1]) == ("inventory", "tests.chaos.builds.inventory")
    assert shipped.env == built.env
    with pytest.raises(StackError, match="There is no service inventori"):
        plan_of(parser().parse_args(["up", "--module", "inventori=x"]))


def test_a_service_may_meet_somebody_on_its_way_to_a_component(tmp_path: Path) -> None:
    """Only this service, only this component; the broker must know both ports; nonsense is one sentence."""
    given = ["--detour", "gateway:redis=77", "--detour", "gateway:kafka=88,99"]
    plan = plan_of(parser().parse_args(["up", *given]))
    assert plan.proxied == (
        processes.ProxiedRoute("gateway", "redis", 77),
        processes.ProxiedRoute("gateway", "kafka", 88, 99),
    )
    real = processes.Addresses("127.0.0.1:1", "postgresql://u:p:w@127.0.0.1:2/d?x=1", "redis://:p@127.0.0.1:3/0")
    met = real.by(plan.proxied)
    assert met == processes.Addresses("127.0.0.1:88", real.postgres, "redis://:p@127.0.0.1:77/0")
    for wrong in ("gateway:kafka=88", "gateway:redis=7,8", "gateways:redis=7", "gateway:mongo=7", "gateway:redis=x"):
        with pytest.raises(StackError, match="is not of the form SERVICE:COMPONENT=PORT"):
            plan_of(parser().parse_args(["up", "--detour", wrong]))
