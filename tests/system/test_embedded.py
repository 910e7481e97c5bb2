"""The embedded PostgreSQL and broker on real processes: started, found again, killed, shared, kept apart."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage, MQTTMessageInfo, MQTTv311

from twin.embedded import (
    DataDir,
    DataDirInUse,
    EmbeddedBroker,
    EmbeddedFailed,
    EmbeddedPostgres,
    Owner,
    database_url_for_command,
    running_broker_url,
)
from twin.settings import Address, Settings

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).resolve().parents[2]
LOOPBACK = Address("127.0.0.1", 0)


def until(condition: Callable[[], object], wait_s: float = 30.0, why: str = "") -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, why or "condition not met in time"
        threading.Event().wait(0.005)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder with Chinese and spaces in its path, below a folder that only its owner may enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    path = closed / "城市 生命线 data"
    yield path
    for server in (EmbeddedPostgres(path), EmbeddedBroker(path, LOOPBACK)):
        for pid in server._pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda server=server: not server._pids())  # type: ignore[misc]


@contextlib.contextmanager
def subprocess_of_ours(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another cimtwin process; each line it prints is an answer to the test, a line to it lets it go on."""
    command = [sys.executable, "-u", "-c", script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


OWNER = """
import logging, os, sys
from pathlib import Path
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from twin.embedded import DataDir, EmbeddedBroker, EmbeddedPostgres
from twin.settings import Address
path = Path(sys.argv[1])
owned = DataDir(path)
owned.lock("127.0.0.1:8123")
postgres, broker = EmbeddedPostgres(path), EmbeddedBroker(path, Address("127.0.0.1", 0))
urls = [postgres.start(), broker.start()]
print(postgres.pid, broker.pid, *urls, flush=True)
sys.stdin.readline()
postgres.stop(), broker.stop()
print("stopped", flush=True)
"""


def answer(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process ended without an answer"
    return line.split()


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return list(cursor.fetchall()) if cursor.description else []


def test_what_was_stored_is_there_after_a_stop_and_a_second_start(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    first = postgres.start()
    rows(first, "CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)")
    assert postgres.alive()
    assert postgres.stop()
    assert not postgres.alive()
    assert postgres.start() == first, "port and password are kept"
    assert rows(first, "SELECT x FROM kept") == [(7,)]
    postgres.stop()


def test_starting_twice_gives_the_same_server(data_dir: Path) -> None:
    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedBroker(data_dir, LOOPBACK)
    before = (postgres.start(), postgres.pid, broker.start(), broker.pid)
    assert (postgres.start(), postgres.pid, broker.start(), broker.pid) == before
    broker.stop()
    assert postgres.stop()
    assert not postgres.stop(), "a second stop does nothing"
    broker.stop()


def test_the_database_is_durable_utf8_and_on_loopback_only(data_dir: Path) -> None:
    with database_url_for_command(Settings(data_dir=data_dir)) as url:
        wanted = {
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "server_encoding": "UTF8",
            "TimeZone": "UTC",
            "jit": "off",
            "max_locks_per_transaction": "1024",
            "shared_buffers": "256MB",
            "max_wal_size": "4GB",
            "max_connections": "60",
        }
        for name, value in wanted.items():
            assert rows(url, f"SHOW {name}") == [(value,)], name
        assert rows(url, "SELECT datlocale FROM pg_database WHERE datname = current_database()") == [("C.UTF-8",)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url, password="wrong")


def test_secrets_are_in_private_files_and_on_no_command_line(data_dir: Path) -> None:
    password = "k7Yw2mQx9RtB4vLs"
    postgres = EmbeddedPostgres(data_dir)
    broker = EmbeddedBroker(data_dir, LOOPBACK, "water", password)
    url = postgres.start()
    broker.start()
    secret = url.split(":")[2].split("@")[0]
    lines = [entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if entry.exists()]
    assert lines
    assert not any(secret.encode() in line or password.encode() in line for line in lines)
    for server in (postgres, broker):
        assert server.pid is not None
        environment = Path(f"/proc/{server.pid}/environ").read_bytes()
        assert b"CIMTWIN" not in environment
        assert server.folder.stat().st_mode & 0o777 == 0o700
    for name in ("postgres/password", "broker/broker.conf"):
        assert (data_dir / name).stat().st_mode & 0o777 == 0o600
    broker.stop()
    postgres.stop()


def test_no_server_runs_as_root_and_no_other_folder_is_opened(data_dir: Path) -> None:
    def modes() -> list[int]:
        return [folder.stat().st_mode for folder in data_dir.parents]

    before = modes()
    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedBroker(data_dir, LOOPBACK)
    postgres.start()
    broker.start()
    assert modes() == before
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
    for server in (postgres, broker):
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    broker.stop()
    postgres.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="this run is the ordinary user's case already")
def test_an_ordinary_user_can_run_both(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    setpriv = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    # only so that this user can read the test's Python and repository, wherever root has put them
    setpriv += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    setpriv.append("--securebits=+no_setuid_fixup")
    result = subprocess.run(
        [*setpriv, sys.executable, "-u", "-c", OWNER, str(home / "数据")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        input="go\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "stopped"
    assert (home / "数据" / "postgres" / "cluster").stat().st_uid == nobody.pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to go without")
def test_root_with_the_few_capabilities_of_a_container_can_run_both(data_dir: Path) -> None:
    script = OWNER.replace(
        "sys.stdin.readline()",
        """
import signal, time
postgres_pid, broker_pid = postgres.pid, broker.pid
for pid in (postgres_pid, broker_pid):
    os.kill(pid, signal.SIGKILL)
while postgres.alive() or broker.alive():
    time.sleep(0.01)
print(postgres.ensure(), broker.ensure(), postgres.pid != postgres_pid, broker.pid != broker_pid)
""",
    )
    fewer = "-dac_read_search,-sys_ptrace,-sys_admin,-sys_resource,-net_admin"
    result = subprocess.run(
        [
            "setpriv",
            f"--bounding-set={fewer}",
            f"--inh-caps={fewer}",
            sys.executable,
            "-u",
            "-c",
            script,
            str(data_dir),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["True True True True", "stopped"]


def test_a_second_owner_is_refused_and_told_of_the_first(data_dir: Path) -> None:
    with subprocess_of_ours(OWNER, data_dir) as first:
        answer(first)
        mine = DataDir(data_dir)
        assert mine.owner() == Owner(first.pid, "127.0.0.1:8123")
        with pytest.raises(DataDirInUse, match=rf"pid {first.pid}, http://127\.0\.0\.1:8123") as refused:
            mine.lock("127.0.0.1:8124")
        assert (refused.value.pid, refused.value.http) == (first.pid, "127.0.0.1:8123")
        first.communicate("go\n", timeout=60)
    assert mine.owner() is None
    mine.lock()
    mine.lock("127.0.0.1:8124")
    assert DataDir(data_dir).owner() == Owner(os.getpid(), "127.0.0.1:8124")
    mine.release()
    assert DataDir(data_dir).owner() is None


def test_two_folders_run_side_by_side(tmp_path: Path) -> None:
    servers = [EmbeddedPostgres(tmp_path / "a"), EmbeddedPostgres(tmp_path / "b")]
    urls = [server.start() for server in servers]
    try:
        assert urls[0] != urls[1]
        assert [rows(url, "SELECT 1") for url in urls] == [[(1,)], [(1,)]]
    finally:
        for server in servers:
            assert server.stop()


def test_servers_left_behind_by_a_killed_service_are_adopted(data_dir: Path) -> None:
    with subprocess_of_ours(OWNER, data_dir) as owner:
        postgres_pid, broker_pid, postgres_url, broker_url = answer(owner)
        rows(postgres_url, "CREATE TABLE kept (x int)")
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(30)
    mine = DataDir(data_dir)
    assert mine.owner() is None
    mine.lock("127.0.0.1:1")
    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedBroker(data_dir, LOOPBACK)
    assert (postgres.start(), broker.start()) == (postgres_url, broker_url)
    assert (postgres.pid, broker.pid) == (int(postgres_pid), int(broker_pid))
    assert rows(postgres_url, "SELECT * FROM kept") == []
    assert postgres.alive()
    assert broker.alive()
    assert not postgres.ensure()
    broker.stop()
    assert postgres.stop(), "what was adopted is stopped too"
    assert not postgres._pids()
    assert not broker._pids()
    mine.release()


def test_an_adopted_server_that_dies_is_started_again(data_dir: Path) -> None:
    with subprocess_of_ours(OWNER, data_dir) as owner:
        postgres_pid, broker_pid, *_ = answer(owner)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(30)
    postgres, broker = EmbeddedPostgres(data_dir), EmbeddedBroker(data_dir, LOOPBACK)
    postgres.start()
    broker.start()
    for server, pid in ((postgres, postgres_pid), (broker, broker_pid)):
        os.kill(int(pid), signal.SIGKILL)
        until(lambda server=server: not server.alive())  # type: ignore[misc]
        assert server.ensure()
        assert server.pid != int(pid)
    assert rows(postgres.url, "SELECT 1") == [(1,)]
    broker.stop()
    postgres.stop()


def test_a_frozen_server_left_behind_is_replaced(data_dir: Path) -> None:
    with subprocess_of_ours(OWNER, data_dir) as owner:
        postgres_pid, broker_pid, *_ = answer(owner)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(30)
    # a postmaster that shuts down waits for its workers, so it is the broker that can be tried frozen
    os.kill(int(broker_pid), signal.SIGSTOP)
    broker = EmbeddedBroker(data_dir, LOOPBACK)
    broker.stop_wait_s = 0.5
    broker.start()
    assert broker.pid not in (None, int(broker_pid))
    broker.stop()
    os.kill(int(postgres_pid), signal.SIGKILL)


def test_what_was_committed_survives_the_death_of_the_database(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    rows(url, "CREATE TABLE kept (x int)")
    with psycopg.connect(url, autocommit=True) as writing:
        for x in range(200):
            writing.execute("INSERT INTO kept VALUES (%s)", (x,))
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        until(lambda: not postgres.alive())
        assert postgres.ensure()
        assert not postgres.ensure(), "once is enough"
    assert postgres.url == url
    assert rows(url, "SELECT count(*), max(x) FROM kept") == [(200, 199)]
    assert postgres.stop()


def test_the_last_user_stops_the_database_and_no_earlier_one(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)
    command = database_url_for_command(settings)
    url = command.__enter__()  # a command starts it
    service = EmbeddedPostgres(data_dir)
    assert service.start() == url  # a service comes
    command.__exit__(None, None, None)
    assert service.alive(), "the command must not take it from the service"
    with database_url_for_command(settings) as again:  # a command while the service runs
        assert again == url
        assert not service.stop(), "the service ends first: the command still needs it"
        assert rows(again, "SELECT 1") == [(1,)]
    assert not EmbeddedPostgres(data_dir).alive()


def test_a_command_finds_the_database_of_a_running_service(data_dir: Path) -> None:
    with subprocess_of_ours(OWNER, data_dir) as service:
        _, _, url, broker_url = answer(service)
        settings = Settings(data_dir=data_dir, mqtt_listen=LOOPBACK)
        with database_url_for_command(settings) as found:
            assert found == url
        assert running_broker_url(settings) == broker_url
        assert rows(url, "SELECT 1") == [(1,)], "still running for the service"
        out, _ = service.communicate("go\n", timeout=60)
        assert out.split() == ["stopped"]
    assert running_broker_url(settings) is None


def test_a_configured_database_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with database_url_for_command(Settings(database_url="postgresql://h/d", data_dir=path)) as url:
        assert url == "postgresql://h/d"
    assert not path.exists()


def test_many_commands_at_once_share_one_database(data_dir: Path) -> None:
    script = """
import sys, structlog
from pathlib import Path
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
import psycopg
from twin.embedded import database_url_for_command
from twin.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]))
for _ in range(8):  # again and again, so that one comes while another stops
    with database_url_for_command(settings) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
print("42")
"""
    with contextlib.ExitStack() as stack:
        commands = [stack.enter_context(subprocess_of_ours(script, data_dir)) for _ in range(4)]
        for command in commands:
            out, _ = command.communicate(timeout=120)
            assert out.split() == ["42"]
    assert not EmbeddedPostgres(data_dir)._pids()


def test_a_half_made_cluster_is_made_again(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.data.make()
    postgres._make_folder()
    (data_dir / "postgres" / "cluster.new").mkdir()
    (data_dir / "postgres" / "cluster.new" / "PG_VERSION").write_text("18\n")
    assert rows(postgres.start(), "SELECT 1") == [(1,)]
    postgres.stop()


def test_a_stale_pid_file_whose_number_another_process_has_is_no_obstacle(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    pid = postgres.pid
    assert pid is not None
    text = (postgres.home / "postmaster.pid").read_text()
    postgres.stop()
    (postgres.home / "postmaster.pid").write_text(text.replace(str(pid), str(os.getpid()), 1))
    assert rows(postgres.start(), "SELECT 1") == [(1,)]
    postgres.stop()


def test_a_taken_port_is_replaced_by_a_free_one(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    first = postgres.start()
    postgres.stop()
    with socket.create_server(("127.0.0.1", int(first.rpartition(":")[2].partition("/")[0]))):
        second = postgres.start()
        assert second != first
        assert rows(second, "SELECT 1") == [(1,)]
        postgres.stop()


def test_a_cluster_of_another_postgresql_version_is_left_alone(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    (postgres.home / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedFailed, match=r"made by PostgreSQL 17, and version 18 is installed"):
        postgres.start()
    (postgres.home / "PG_VERSION").write_text("18\n")
    postgres.start()
    postgres.stop()


def test_a_database_that_cannot_start_says_why(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    control = postgres.home / "global" / "pg_control"
    control.rename(control.with_suffix(".away"))
    with pytest.raises(EmbeddedFailed, match="pg_control"):
        postgres.start()
    control.with_suffix(".away").rename(control)
    postgres.start()
    postgres.stop()


# ---- the broker ------------------------------------------------------------------------------------------------------


def client(name: str, clean: bool, manual_ack: bool = False) -> Client:
    return Client(CallbackAPIVersion.VERSION2, name, clean, protocol=MQTTv311, manual_ack=manual_ack)


class Subscriber:
    """The service's side: a persistent 3.1.1 session over both topic trees, acknowledging what it has noted."""

    def __init__(self, address: Address, is_acknowledging: bool = True) -> None:
        self.seen: list[bytes] = []
        self.granted: list[int] = []
        self._client = client("cimtwin", clean=False, manual_ack=True)
        self._client.on_connect = lambda c, *_: c.subscribe([("cim/v1/#", 1), ("v1/gateway/telemetry", 1)])
        self._client.on_subscribe = lambda _c, _u, _m, codes, _p: self.granted.extend(code.value for code in codes)
        self._is_acknowledging = is_acknowledging
        self._client.on_message = self._note
        self._client.connect(address.host, address.port)
        self._client.loop_start()
        until(lambda: len(self.granted) >= 2, why="not subscribed")

    def _note(self, connected: Client, _userdata: object, message: MQTTMessage) -> None:
        self.seen.append(message.payload)
        if self._is_acknowledging:
            connected.ack(message.mid, message.qos)

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Publisher:
    """A device's side: QoS 1, and the knowledge of what was acknowledged."""

    def __init__(self, address: Address, user: str | None = None, password: str | None = None) -> None:
        self.sent: dict[bytes, MQTTMessageInfo] = {}
        self.refusals: list[str] = []
        self._client = client("device", clean=True)
        self._client.max_inflight_messages_set(500)
        if user is not None:
            self._client.username_pw_set(user, password)
        self._acknowledged: set[int] = set()
        self.connected: list[str] = []
        self._client.on_publish = lambda _c, _u, mid, *_: self._acknowledged.add(mid)
        self._client.on_connect = lambda _c, _u, _f, code, _p: self.connected.append(str(code))
        self._client.connect(address.host, address.port)
        self._client.loop_start()
        until(lambda: self.connected, why="no answer to CONNECT")

    def send(self, topic: str, payload: bytes) -> None:
        self.sent[payload] = self._client.publish(topic, payload, qos=1)

    def acknowledged(self) -> set[bytes]:
        return {payload for payload, info in self.sent.items() if info.mid in self._acknowledged}

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_an_absent_persistent_session_gets_everything_from_both_topic_trees(data_dir: Path) -> None:
    broker = EmbeddedBroker(data_dir, LOOPBACK)
    broker.start()
    subscriber = Subscriber(broker.address)
    assert subscriber.granted == [1, 1]
    subscriber.leave()
    device = Publisher(broker.address)
    for n in range(500):
        topic = "v1/gateway/telemetry" if n % 5 == 0 else f"cim/v1/water/pump-{n % 7}/telemetry"
        device.send(topic, b"%d" % n)
    until(lambda: len(device.acknowledged()) == 500)
    device.leave()
    subscriber = Subscriber(broker.address)
    until(lambda: len(subscriber.seen) >= 500)
    assert sorted(map(int, subscriber.seen)) == list(range(500)), "each once"
    subscriber.leave()
    broker.stop()


def test_what_was_not_acknowledged_comes_again_to_the_next_connection(data_dir: Path) -> None:
    broker = EmbeddedBroker(data_dir, LOOPBACK)
    broker.start()
    deaf = Subscriber(broker.address, is_acknowledging=False)
    device = Publisher(broker.address)
    for n in range(100):
        device.send("cim/v1/water/pump/telemetry", b"%d" % n)
    until(lambda: len(deaf.seen) == 100)
    deaf.leave()
    again = Subscriber(broker.address)
    device.send("cim/v1/water/pump/telemetry", b"new")
    until(lambda: b"new" in again.seen, 5.0, "what is new must not wait behind what comes again")
    until(lambda: len(set(again.seen)) == 101, 30.0)
    again.leave()
    device.leave()
    broker.stop()


@pytest.mark.parametrize("is_synced_always", [False, True], ids=["synced once a second", "synced always"])
def test_acknowledged_messages_survive_the_death_of_the_broker_in_full_stream(
    data_dir: Path, is_synced_always: bool
) -> None:
    broker = EmbeddedBroker(data_dir, LOOPBACK, is_synced_always=is_synced_always)
    broker.start()
    Subscriber(broker.address).leave()
    for life in range(2):
        device = Publisher(broker.address)
        for n in range(4000):
            device.send("cim/v1/water/pump/telemetry", b"%d-%d" % (life, n))
        until(lambda device=device: len(device.acknowledged()) >= 1000)  # type: ignore[misc]
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        until(lambda: not broker.alive())
        device.leave()
        kept = device.acknowledged()
        assert len(kept) >= 1000
        assert broker.ensure()
        subscriber = Subscriber(broker.address)
        until(lambda subscriber=subscriber, kept=kept: kept <= set(subscriber.seen), why="lost messages")  # type: ignore[misc]
        assert len(subscriber.seen) == len(set(subscriber.seen)), "each once"
        subscriber.leave()
    broker.stop()


def test_a_message_over_the_services_limit_still_reaches_it_to_be_quarantined(data_dir: Path) -> None:
    broker = EmbeddedBroker(data_dir, LOOPBACK)
    broker.start()
    subscriber = Subscriber(broker.address)
    device = Publisher(broker.address)
    device.send("cim/v1/water/pump/telemetry", b"x" * 3_000_000)
    until(lambda: subscriber.seen)
    assert len(subscriber.seen[0]) == 3_000_000
    device.leave()
    subscriber.leave()
    broker.stop()


@pytest.mark.parametrize("password", ["k7Yw2mQx9RtB4vLs", 'a"b\\c #$x', "口令 {7} $2a$"])
def test_a_broker_with_credentials_lets_nobody_else_in(data_dir: Path, password: str) -> None:
    broker = EmbeddedBroker(data_dir, LOOPBACK, "水务", password)
    broker.start()
    for user, given, is_let_in in (("水务", password, True), ("水务", "guess", False), (None, None, False)):
        device = Publisher(broker.address, user, given)
        assert (device.connected[0] == "Success") is is_let_in, (user, given)
        device.leave()
    broker.stop()


def test_a_broker_left_behind_with_other_settings_is_started_anew(data_dir: Path) -> None:
    EmbeddedBroker(data_dir, LOOPBACK).start()
    broker = EmbeddedBroker(data_dir, LOOPBACK, "water", "k7Yw2mQx9RtB4vLs")
    broker.start()
    device = Publisher(broker.address)
    assert device.connected[0] != "Success"
    device.leave()
    broker.stop()


def test_a_taken_mqtt_address_is_named(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedFailed, match=rf"MQTT address 127\.0\.0\.1:{port} is taken"):
            EmbeddedBroker(data_dir, Address("127.0.0.1", port)).start()


def test_a_data_dir_that_cannot_be_made_is_one_readable_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedFailed, match=r"Not a directory|File exists"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()
    with pytest.raises(EmbeddedFailed, match="File exists"):
        DataDir(tmp_path / "file").lock()


def test_the_system_user_reaches_the_wheels_whatever_their_modes(data_dir: Path) -> None:
    assert shutil.which("setpriv", path="/usr/bin:/bin"), "util-linux is part of every supported system"
    postgres = EmbeddedPostgres(data_dir)
    assert rows(postgres.start(), "SELECT extname FROM pg_extension") == [("plpgsql",)]
    postgres.stop()
