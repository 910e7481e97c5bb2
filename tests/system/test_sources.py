"""What every MQTT source does, with every broker: one suite for both implementations."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from ingest.inbox import Inbox
from ingest.mqtt import PahoSource, Publisher
from ingest.source import WireSource
from tests.conftest import free_port, until
from tests.proxy import Proxy
from twin.embedded import ACK_WAIT_S, EmbeddedBroker
from twin.model import RawMessage
from twin.settings import Address

pytestmark = pytest.mark.system

TOPIC = "cim/v1/市/d1/telemetry"
Source = WireSource | PahoSource
KEEP = 1 << 20


class Broker(Protocol):
    url: str

    def start(self) -> Any: ...

    def stop(self) -> None: ...


class Mosquitto:
    """A mosquitto that keeps its sessions over a restart."""

    def __init__(self, folder: Path, more: str = "", user: str = "", password: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        credentials = f"{user}:{password}@" if user else ""
        self.url = f"mqtt://{credentials}127.0.0.1:{self.port}"
        if user:
            passwords = folder / "passwords"
            subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, user, password], check=True)
            more += f"password_file {passwords}\n"
        if os.geteuid() == 0:
            more = "user root\n" + more  # else it becomes another user, who cannot read this folder
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous {'false' if user else 'true'}\nmax_queued_messages 0\n"
            f"max_inflight_messages 0\npersistence true\npersistence_location {folder}/\n{more}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert program, "mosquitto is not installed (apt-get install mosquitto)"
        self._process = process = subprocess.Popen(
            [program, "-c", str(self.folder / "mosquitto.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: answers(self.port) or process.poll() is not None, "mosquitto")
            assert process.poll() is None, "mosquitto ended"
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Nats(EmbeddedBroker):
    """The embedded broker, on a port that stays."""

    def __init__(self, folder: Path, user: str = "", password: str = "") -> None:
        super().__init__(folder, Address("127.0.0.1", free_port()), user or None, password or None)


BROKERS: dict[str, Callable[..., Broker]] = {"mosquitto": Mosquitto, "nats-server": Nats}


class Bench:
    """A broker, and sources and publishers on it."""

    def __init__(self, broker: Broker, make: type[Source]) -> None:
        self.broker = broker
        self.make = make
        self.client_id = f"test-{uuid.uuid4().hex[:8]}"
        self.sources: list[Source] = []
        self.closed = contextlib.ExitStack()

    def source(self, url: str = "", messages: int = 65535, **options: Any) -> Source:
        source = self.make(
            url or self.broker.url, self.client_id, Inbox(messages, 1 << 28), lambda: time.time_ns() // 1000, **options
        )
        source.start()
        self.sources.append(source)
        until(lambda: source.is_connected, "the source to be connected")
        return source

    def proxy(self, largest: int = 1 << 16) -> tuple[Proxy, str]:
        proxy = Proxy(self.broker.url, largest)
        self.closed.callback(proxy.close)
        return proxy, proxy.url

    def publish(self, first: int, last: int, size: int = 0, topic: str = TOPIC) -> None:
        """Messages that say their numbers, `first` to `last` - 1."""
        publisher = Publisher(self.broker.url, window=200)
        publisher.connect()
        for n in range(first, last):
            publisher.publish(topic, str(n).encode().ljust(size))
        publisher.flush()
        publisher.close()

    def close(self) -> None:
        for source in self.sources:
            source.stop()
        self.closed.close()
        self.broker.stop()


def take(source: Source, number: int) -> list[RawMessage]:
    """At least so many messages, unacknowledged."""
    taken: list[RawMessage] = []

    def enough() -> bool:
        taken.extend(source.inbox.take(10_000, 0.1, 0, lambda: False))
        return len(taken) >= number

    until(enough, f"{number} messages")
    return taken


def take_all(source: Source, wanted: range) -> list[RawMessage]:
    """Those of these numbers and no others, unacknowledged; nats-server may repeat some meanwhile."""
    taken: list[RawMessage] = []

    def are_there() -> bool:
        taken.extend(source.inbox.take(10_000, 0.1, 0, lambda: False))
        assert {*numbers(taken)} <= {*wanted}
        return len({*numbers(taken)}) == len(wanted)

    until(are_there, f"{wanted}", ACK_WAIT_S + 20)
    return taken


def settled(source: Source) -> None:
    """Acknowledgements have reached the broker; our own waits for that when it stops."""
    if isinstance(source, PahoSource):
        time.sleep(0.5)


def numbers(messages: list[RawMessage]) -> list[int]:
    return [int(m.payload) for m in messages]


def is_quiet(source: Source, for_s: float = 0.5) -> bool:
    return not source.inbox.take(1, for_s, 0, lambda: False)


@pytest.fixture(params=[WireSource, PahoSource], ids=["own", "paho"])
def make(request: pytest.FixtureRequest) -> type[Source]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=BROKERS)
def broker_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bench(make: type[Source], broker_name: str, tmp_path: Path) -> Iterator[Bench]:
    broker = BROKERS[broker_name](tmp_path / "broker")
    broker.start()
    bench = Bench(broker, make)
    yield bench
    bench.close()


def test_each_message_comes_once_and_after_its_acknowledgement_never_again(bench: Bench) -> None:
    source = bench.source()
    bench.publish(0, 5000)
    messages = take(source, 5000)
    assert numbers(messages) == list(range(5000))
    assert {(m.topic, m.qos, m.left_out, m.connection) for m in messages} == {(TOPIC, 1, 0, source.connection)}
    assert len({m.mid for m in messages}) == 5000
    assert abs(messages[-1].received_at / 1e6 - time.time()) < 60
    for at in range(0, 5000, 700):
        source.acknowledge(messages[at : at + 700])
    settled(source)
    source.stop()
    assert is_quiet(bench.source(), 1)
    assert source.failures == 0


def test_acknowledged_messages_make_room_for_more_than_one_window(bench: Bench) -> None:
    source = bench.source()
    publishing = threading.Thread(target=bench.publish, args=(0, 30_000))
    publishing.start()
    taken: list[int] = []
    while len(taken) < 30_000:
        some = take(source, 1)
        taken += numbers(some)
        source.acknowledge(some)
    publishing.join()
    assert taken == list(range(30_000))


def test_what_was_not_acknowledged_comes_again_after_a_dropped_connection(bench: Bench) -> None:
    proxy, url = bench.proxy()
    source = bench.source(url)
    bench.publish(0, 100)
    first = take(source, 100)
    source.acknowledge(first[:60])
    time.sleep(0.5)  # on its way
    before = source.connection
    proxy.cut()
    until(lambda: source.connection > before and source.is_connected, "the source to be back")
    again = take_all(source, range(60, 100))
    assert {m.connection for m in again} == {source.connection}
    source.acknowledge(first[60:])  # of the old connection: says nothing
    proxy.cut()
    until(lambda: source.connection > before + 1 and source.is_connected, "the source to be back again")
    source.acknowledge(take_all(source, range(60, 100)))
    bench.publish(100, 200)
    take_all(source, range(100, 200))


def test_bytes_may_come_in_any_pieces(bench: Bench) -> None:
    _, url = bench.proxy(largest=7)
    source = bench.source(url)
    bench.publish(0, 300, size=300)
    messages = take(source, 300)
    assert numbers(messages) == list(range(300))
    source.acknowledge(messages)
    settled(source)
    source.stop()
    assert is_quiet(bench.source())


def test_a_connection_cut_in_mid_stream_again_and_again_loses_nothing(bench: Bench) -> None:
    proxy, url = bench.proxy(largest=900)
    source = bench.source(url)
    publishing = threading.Thread(target=bench.publish, args=(0, 3000, 200))
    publishing.start()
    seen: set[int] = set()
    cuts = [100, 700, 1500]

    def everything() -> bool:
        some = source.inbox.take(200, 0.1, 0, lambda: False)
        seen.update(numbers(some))
        source.acknowledge(some)
        if cuts and len(seen) > cuts[0]:
            del cuts[0]
            proxy.cut()
        return len(seen) == 3000

    until(everything, "all 3,000 messages", 30 + 4 * ACK_WAIT_S)
    publishing.join()
    assert source.failures == 0


def test_a_message_too_large_is_handed_on_and_hurts_no_other(bench: Bench) -> None:
    source = bench.source()
    bench.publish(0, 2)
    bench.publish(2, 4, size=3_000_000)
    bench.publish(4, 6)
    messages = take(source, 6)
    assert [m.size for m in messages] == [1, 1, 3_000_000, 3_000_000, 1, 1]
    for n, message in enumerate(messages):
        assert int(message.payload) == n
        assert len(message.payload) >= min(message.size, KEEP)
        assert bench.make is PahoSource or len(message.payload) <= KEEP
    source.acknowledge(messages)
    settled(source)
    source.stop()
    assert is_quiet(bench.source())


def test_the_session_survives_the_source(bench: Bench) -> None:
    source = bench.source()
    bench.publish(0, 10)
    source.acknowledge(take(source, 10)[:5])
    source.stop()
    bench.publish(10, 1000)
    source = bench.source()
    take_all(source, range(5, 1000))


def test_a_full_inbox_holds_the_broker_back_and_nothing_is_lost(bench: Bench) -> None:
    source = bench.source(messages=100)
    bench.publish(0, 3000, size=2000)
    until(lambda: source.inbox.waits, "the inbox to be full")
    assert len(source.inbox) == 100
    taken: list[int] = []
    while len(taken) < 3000:
        some = take(source, 1)
        assert len(some) <= 100
        taken += numbers(some)
        source.acknowledge(some)
    assert sorted(set(taken)) == list(range(3000))


def test_a_restarted_broker_is_found_again_and_kept_what_it_took(bench: Bench) -> None:
    source = bench.source()
    bench.publish(0, 100)
    source.acknowledge(take(source, 100)[:50])
    time.sleep(0.5)
    bench.broker.stop()
    until(lambda: not source.is_connected, "the source to see it")
    bench.broker.start()
    until(lambda: source.is_connected, "the source to be back")
    bench.publish(100, 150)
    take_all(source, range(50, 150))


def test_a_wrong_password_is_told_in_one_line_and_the_right_one_lets_in(
    make: type[Source], broker_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker = BROKERS[broker_name](tmp_path / "broker", user="devices", password="k7Yw2mQx9")
    broker.start()
    try:
        wrong = make(broker.url.replace("k7Yw2mQx9", "wrong"), "c", Inbox(10, 10), lambda: 0)
        wrong.start()
        until(lambda: any("ot authorized" in r.message for r in caplog.records), "the refusal")
        wrong.stop()
        lines = [r.getMessage() for r in caplog.records if r.name.startswith("ingest")]
        assert lines
        for line in lines:
            assert re.fullmatch(r"broker 127.0.0.1:\d+:? refuses: (Not authorized|Unsupported protocol version)", line)
        assert not wrong.is_connected
        right = make(broker.url, "c", Inbox(10, 10), lambda: 0)
        right.start()
        until(lambda: right.is_connected)
        right.stop()
        assert "k7Yw2mQx9" not in caplog.text
    finally:
        broker.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a refused socket open
@pytest.mark.parametrize("is_trusted", [True, False], ids=["trusted", "untrusted"])
def test_tls_is_spoken_and_the_certificate_is_checked(
    make: type[Source], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    is_trusted: bool,
) -> None:  # fmt: skip
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    broker = Mosquitto(tmp_path / "broker", f"listener {port} 127.0.0.1\ncertfile {certificate}\nkeyfile {key}\n")
    broker.start()
    bench = Bench(broker, make)
    try:
        url = f"mqtts://localhost:{port}"
        if not is_trusted:
            source = make(url, "c", Inbox(10, 10), lambda: 0)
            source.start()
            until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text, "the refusal")
            source.stop()
            assert not source.connection
            caplog.clear()  # its records hold the refused socket
            gc.collect()
            return
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        source = bench.source(url)
        bench.publish(0, 3000, size=900)
        bench.publish(3000, 3001, size=3_000_000)
        messages = take(source, 3001)
        assert numbers(messages) == list(range(3001))
        source.acknowledge(messages)
        settled(source)
        source.stop()
        assert is_quiet(bench.source(url))
    finally:
        bench.close()


# ---- what only our own does


@pytest.fixture
def own(broker_name: str, tmp_path: Path) -> Iterator[Bench]:
    broker = BROKERS[broker_name](tmp_path / "broker")
    broker.start()
    bench = Bench(broker, WireSource)
    yield bench
    bench.close()


def test_while_the_inbox_is_full_the_connection_stays_and_acknowledgements_go_out(own: Bench) -> None:
    source = own.source(messages=100, keepalive_s=2)
    own.publish(0, 400, size=2000)
    until(lambda: source.inbox.waits, "the inbox to be full")
    time.sleep(6)  # the broker ends a connection that is silent for three seconds
    assert (source.is_connected, source.connection) == (True, 1)
    first = take(source, 100)
    source.acknowledge(first)
    messages = take(source, 300)
    source.acknowledge(messages)
    assert {*numbers(first + messages)} == {*range(400)}
    assert source.connection == 1


def test_a_broker_that_is_there_and_says_nothing_is_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.conversation.ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        source = WireSource(f"mqtt://127.0.0.1:{mute.getsockname()[1]}", "c", Inbox(10, 10), lambda: 0)
        source.start()
        until(lambda: "does not answer" in caplog.text)
        begun = time.monotonic()
        source.stop()
        assert time.monotonic() - begun < 5


def test_what_is_no_broker_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        source = WireSource(f"mqtt://127.0.0.1:{other.getsockname()[1]}", "c", Inbox(10, 10), lambda: 0)
        source.start()
        with other.accept()[0] as connected:
            connected.recv(1000)
            connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(90))
            until(lambda: "does not speak MQTT" in caplog.text)
        source.stop()


def test_a_refused_subscription_and_a_reason_to_disconnect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        source = WireSource(f"mqtt://127.0.0.1:{broker.getsockname()[1]}", "c", Inbox(10, 10), lambda: 0)
        source.start()
        with broker.accept()[0] as connected:
            connected.recv(1000)
            connected.sendall(bytes.fromhex("200300000090050001000187"))
            until(lambda: source.is_connected)
            assert "refuses the subscription to v1/gateway/telemetry: Not authorized" in caplog.text
            connected.sendall(bytes.fromhex("e0018e"))
            until(lambda: "lost the broker" in caplog.text)
        assert "ends the connection: Session taken over by another client with our id" in caplog.text
        source.stop()
