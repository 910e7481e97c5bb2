"""The shipped broker configuration on a real Mosquitto, and what docker-compose.yml promises."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5, MQTTv311
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin"
PASSWORDS = {"cimtwin": "k7Yw2mQx9RtB4vLs", "water": "zP5nD8cTq1Jf6hWa", "default": "u3Xe9GrV7yKb2SmN"}


def until(condition: Callable[[], object], wait_s: float = 30.0, why: str = "condition not met in time") -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, why
        threading.Event().wait(0.01)


def program(name: str) -> str:
    found = shutil.which(name, path=SEARCH)
    assert found, f"the package mosquitto is needed for this test ({name})"
    return found


def make_passwords(target: Path, service: str | None, tenants: str | None) -> subprocess.CompletedProcess[str]:
    given = {"SERVICE_PASSWORD": service, "TENANT_PASSWORDS": tenants}
    environment = {"PATH": SEARCH} | {name: value for name, value in given.items() if value is not None}
    command = ["/bin/sh", str(ROOT / "docker" / "make-passwords"), str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@dataclass
class Broker:
    """A Mosquitto with the shipped files, only their paths and port moved."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [program("mosquitto"), "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._listens, why="mosquitto does not start")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "broker.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    for folder in ("config", "secrets", "data"):
        (tmp_path / folder).mkdir()
    made = make_passwords(
        tmp_path / "secrets" / "passwords",
        PASSWORDS["cimtwin"],
        f"water:{PASSWORDS['water']} default:{PASSWORDS['default']}",
    )
    assert made.returncode == 0, made.stderr
    shutil.copy(ROOT / "docker" / "acl", tmp_path / "config" / "acl")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (ROOT / "docker" / "mosquitto.conf").read_text(encoding="utf-8")
    assert "listener 1883\n" in text
    text = text.replace("/mosquitto/", f"{tmp_path}/").replace("listener 1883\n", f"listener {port} 127.0.0.1\n")
    if os.geteuid() == 0:
        text += "user root\n"  # the test's folders are root's
    (tmp_path / "mosquitto.conf").write_text(text, encoding="utf-8")
    running = Broker(tmp_path, port)
    running.start()
    yield running
    running.stop()


class Someone:
    """An MQTT client that notes the broker's answers."""

    def __init__(self, broker: Broker, user: str | None, password: str | None = None, name: str = "", version: int = 5):
        self.connected: list[str] = []
        self.granted: list[int] = []
        self.answers: dict[int, str] = {}
        self.seen: list[bytes] = []
        if version == 5:
            self._client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
        else:
            self._client = Client(CallbackAPIVersion.VERSION2, name, clean_session=not name, protocol=MQTTv311)
        if user is not None:
            self._client.username_pw_set(user, password or PASSWORDS[user])
        self._client.max_inflight_messages_set(1000)
        self._client.on_connect = lambda _c, _u, _f, code, _p: self.connected.append(str(code))
        self._client.on_subscribe = lambda _c, _u, _m, codes, _p: self.granted.extend(code.value for code in codes)
        self._client.on_publish = lambda _c, _u, mid, code, _p: self.answers.__setitem__(mid, str(code))
        self._client.on_message = lambda _c, _u, message: self.seen.append(message.payload)
        if version == 5:
            lasting = Properties(PacketTypes.CONNECT)
            lasting.SessionExpiryInterval = 0xFFFFFFFF if name else 0
            lasting.ReceiveMaximum = 65535
            self._client.connect("127.0.0.1", broker.port, clean_start=not name, properties=lasting)
        else:
            self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        until(lambda: self.connected, why="no answer to CONNECT")

    def publish(self, topic: str, payload: bytes = b"1") -> str:
        """The broker's answer to one message."""
        mid = self._client.publish(topic, payload, qos=1).mid
        until(lambda: mid in self.answers, why="no PUBACK")
        return self.answers[mid]

    def send(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def subscribe(self, *topics: str) -> list[int]:
        self.granted.clear()
        self._client.subscribe([(topic, 1) for topic in topics])
        until(lambda: len(self.granted) == len(topics), why="no SUBACK")
        return list(self.granted)

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_nobody_gets_in_without_a_password(broker: Broker) -> None:
    for user, password in ((None, None), ("water", "guess"), ("nobody", "zP5nD8cTq1Jf6hWa")):
        someone = Someone(broker, user, password)
        assert someone.connected[0] != "Success", (user, password)
        someone.leave()


def test_a_tenant_writes_its_own_topics_and_no_others(broker: Broker) -> None:
    service = Someone(broker, "cimtwin")
    assert service.subscribe("cim/v1/#", "v1/gateway/telemetry") == [1, 1]
    tenant = Someone(broker, "water")
    refused = ["cim/v1/gas/pump/telemetry", "cim/v1/water2/p/telemetry", "v1/gateway/telemetry", "other", "cim/v1"]
    for topic in refused:
        assert tenant.publish(topic, topic.encode()) == "Not authorized", topic
    for topic in ("cim/v1/water/pump/telemetry", "cim/v1/water/gateway/telemetry", "cim/v1/water/pump/status"):
        assert tenant.publish(topic, topic.encode()) == "Success", topic
    until(lambda: len(service.seen) == 3)
    assert all(payload.startswith(b"cim/v1/water/") for payload in service.seen)
    for someone in (tenant, service):
        someone.leave()


def test_a_tenant_reads_nothing_and_the_service_everything(broker: Broker) -> None:
    listener = Someone(broker, "water")
    listener.subscribe("cim/v1/#", "#", "cim/v1/water/#")
    service, default = Someone(broker, "cimtwin"), Someone(broker, "default")
    service.subscribe("cim/v1/#", "v1/gateway/telemetry")
    assert default.publish("v1/gateway/telemetry", b"thingsboard") == "Success"
    assert default.publish("cim/v1/default/pump/telemetry", b"own") == "Success"
    until(lambda: sorted(service.seen) == [b"own", b"thingsboard"])
    assert listener.seen == []
    for someone in (listener, service, default):
        someone.leave()


@pytest.mark.parametrize("version", [5, 4], ids=["MQTT 5", "MQTT 3.1.1"])
def test_five_thousand_messages_wait_for_an_absent_service_also_over_a_restart(broker: Broker, version: int) -> None:
    service = Someone(broker, "cimtwin", name="cimtwin", version=version)
    service.subscribe("cim/v1/#")
    service.leave()
    tenant = Someone(broker, "water")
    for n in range(5000):
        tenant.send("cim/v1/water/pump/telemetry", b"%d" % n)
    until(lambda: len(tenant.answers) == 5000, 60)
    tenant.leave()
    broker.stop()
    broker.start()
    service = Someone(broker, "cimtwin", name="cimtwin", version=version)
    until(lambda: len(service.seen) >= 5000, 60, "messages were dropped")
    assert [int(payload) for payload in service.seen] == list(range(5000))
    service.leave()


def test_a_message_over_the_services_limit_passes_and_a_huge_one_does_not(broker: Broker) -> None:
    service, tenant = Someone(broker, "cimtwin"), Someone(broker, "water", version=4)
    service.subscribe("cim/v1/#")
    tenant.publish("cim/v1/water/pump/telemetry", b"x" * 3_000_000)
    until(lambda: service.seen)
    huge = Someone(broker, "water", version=4)
    huge.send("cim/v1/water/pump/telemetry", b"x" * 9_000_000)
    tenant.publish("cim/v1/water/pump/telemetry", b"after")
    until(lambda: len(service.seen) >= 2)
    assert [len(payload) for payload in service.seen] == [3_000_000, 5]
    for someone in (service, tenant, huge):
        someone.leave()


def test_the_password_file_is_private_and_hashed(tmp_path: Path) -> None:
    target = tmp_path / "passwords"
    made = make_passwords(target, PASSWORDS["cimtwin"], f"water:{PASSWORDS['water']}")
    assert made.returncode == 0, made.stderr
    text = target.read_text()
    assert [line.split(":")[0] for line in text.splitlines()] == ["cimtwin", "water"]
    assert not any(password in text + made.stdout + made.stderr for password in PASSWORDS.values())
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("service", "tenants"),
    [
        (None, "water:zP5nD8cTq1Jf6hWa"),
        ("k7Yw2mQx9RtB4vLs", None),
        ("short", "water:zP5nD8cTq1Jf6hWa"),
        ("k7Yw2mQx9RtB4vLs", "water:short"),
        ("k7Yw2mQx9RtB4vLs", "water-authority:water-authority"),
        ("k7Yw2mQx9RtB4vLs", "zP5nD8cTq1Jf6hWa"),
        ("k7Yw2mQx9RtB4vLs", "cimtwin:zP5nD8cTq1Jf6hWa"),
        ("k7Yw2mQx9RtB4vLs", "a/b:zP5nD8cTq1Jf6hWa"),
        ("k7Yw2mQx9RtB4vLs", "+:zP5nD8cTq1Jf6hWa"),
    ],
)
def test_weak_or_malformed_passwords_are_refused_and_not_shown(
    tmp_path: Path, service: str | None, tenants: str | None
) -> None:
    made = make_passwords(tmp_path / "passwords", service, tenants)
    assert made.returncode != 0
    assert made.stderr
    assert list(tmp_path.iterdir()) == []
    for secret in PASSWORDS.values():
        assert secret not in made.stderr


# ---- docker-compose.yml ----------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_every_lasting_service_has_a_health_check_and_waits_for_healthy_ones() -> None:
    services = compose()["services"]
    for name, service in services.items():
        if service["restart"] == "no":
            continue
        assert service["healthcheck"]["test"][0] == "CMD", name
    assert services["cimtwin"]["depends_on"] == {
        "database": {"condition": "service_healthy"},
        "broker": {"condition": "service_healthy"},
    }
    assert services["broker"]["depends_on"]["broker-passwords"]["condition"] == "service_completed_successfully"


def test_images_are_pinned_and_what_is_mounted_exists() -> None:
    document = compose()
    for name, service in document["services"].items():
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+(-pg\d+)?", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
            else:
                assert source in document["volumes"]


def test_no_secret_has_a_default_and_the_example_names_every_variable() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    variables = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert variables
    for name, rest in variables:
        assert re.search(rf"^#?{name}=", example, re.MULTILINE), name
        if re.search("PASSWORD|TOKEN", name):
            assert rest.startswith(":?"), f"{name} must be refused when unset"
            assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} must be empty in the example"
    assert not re.search(r"^\s+\w*(PASSWORD|TOKEN)\w*:\s+[^$\s]", text, re.MULTILINE)


def test_the_image_runs_as_an_ordinary_user_with_a_health_check() -> None:
    last_stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert last_stage.startswith("python:3.12-slim\n")
    assert "\nUSER cimtwin\n" in last_stage
    assert "/readyz" in last_stage
    assert not re.search(r"gcc|build-essential|pip install", last_stage)
