"""MQTT, and the only home of paho: the source that the pipeline reads, and a publisher.

The source keeps a persistent session under a fixed client id and acknowledges a message only when told to. Its inbox
is bounded in messages and bytes; while it is full the network thread waits, so that TCP holds the broker back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ingest.conversation import RECEIVE_MAXIMUM, SUBSCRIPTIONS, Address
from ingest.inbox import Inbox
from twin.model import Micros, RawMessage

log = logging.getLogger(__name__)

# Longer than a stall of the database that we want to ride out without losing the connection, [E].
KEEPALIVE_S: Final = 120
DRAIN: Final = 500  # messages taken in before writing, and a ping, get their turn


def share_property_tables() -> None:
    """Spare paho some forty dictionary entries for each MQTT 5 message: its `Properties` builds three constant tables
    in every instance, and looks for each of 27 properties in a packet that has none. Measured: twice the messages a
    second. Left alone where a version of paho keeps its tables otherwise."""
    sample = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if vars(sample).keys() != {"packetType", "types", "names", "properties"}:
        return
    tables = {name: value for name, value in vars(sample).items() if name != "packetType"}
    unpack = Properties.unpack

    def begin(self: Properties, packet_type: int) -> None:
        vars(self).update(tables, packetType=packet_type)

    def unpack_some(self: Properties, buffer: bytes) -> tuple[Properties, int]:
        if buffer[:1] == b"\0":
            return self, 1
        done: tuple[Properties, int] = unpack(self, buffer)  # type: ignore[no-untyped-call]
        return done

    if Properties.__init__.__module__ != __name__:  # once is enough
        Properties.__init__ = begin  # type: ignore[method-assign]
        Properties.unpack = unpack_some  # type: ignore[method-assign]


class PahoSource:
    """Messages from a broker by paho: MQTT 5 where the broker speaks it (`tries_v5`: and may), else 3.1.1."""

    def __init__(
        self, url: str, client_id: str, inbox: Inbox, clock: Callable[[], Micros], tries_v5: bool = True
    ) -> None:
        self.address = Address.of(url)
        self.client_id = client_id
        self.inbox = inbox
        self.clock = clock
        self.connection = 0
        self.is_connected = False
        self.failures = 0
        self.protocol = MQTTProtocolVersion.MQTTv5 if tries_v5 else MQTTProtocolVersion.MQTTv311
        self._stopping = threading.Event()
        self._refused = threading.Event()
        self._taken = 0
        self._speaks_older = False
        self._client: paho.Client | None = None
        self._thread: threading.Thread | None = None
        share_property_tables()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect; the session stays with the broker."""
        self._stopping.set()
        self.inbox.close()
        client = self._client
        if client is not None:
            client.disconnect()
        if self._thread is not None:
            self._thread.join(10)

    def acknowledge(self, messages: Sequence[RawMessage]) -> None:
        """Tell the broker that these are safe. Those of an earlier connection are left out: their packet ids may
        mean other messages by now, and the broker sends them again."""
        client = self._client
        if client is None:
            return
        current = self.connection
        for message in messages:
            if message.qos and message.connection == current:
                client.ack(message.mid, message.qos)

    def _run(self) -> None:
        """Keep a connection until stopped, waiting 0.2 s and up to 5 s between tries."""
        pause = 0.2
        while not self._stopping.is_set():
            connected_before = self.connection
            client = self._make()
            self._client = client
            try:
                client.connect(
                    self.address.host,
                    self.address.port,
                    keepalive=KEEPALIVE_S,
                    **self._session_options(),
                )
                while client.loop(timeout=1.0) == paho.MQTT_ERR_SUCCESS and not self._refused.is_set():
                    self._drain(client)
                    if self._stopping.is_set() and not client.is_connected():
                        break
            except OSError as error:
                log.warning("broker %s:%d: %s", self.address.host, self.address.port, error)
            except Exception:
                self.failures += 1
                log.exception("the MQTT connection failed unexpectedly")
            if self.is_connected and not self._stopping.is_set():
                log.warning("lost the broker %s:%d", self.address.host, self.address.port)
            self.is_connected = False
            if self._refused.is_set():
                self._refused.clear()
                if self._speaks_older:
                    self.protocol = MQTTProtocolVersion.MQTTv311
                    continue
            pause = 0.2 if self.connection != connected_before else min(pause * 2, 5.0)
            self._stopping.wait(pause)

    def _drain(self, client: paho.Client) -> None:
        """Take in what has come already: one `select` a message, as `loop` does, costs more than the message."""
        for _ in range(DRAIN):
            taken = self._taken
            if client.loop_read() != paho.MQTT_ERR_SUCCESS or self._taken == taken:
                return

    def _make(self) -> paho.Client:
        is_v5 = self.protocol is MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            clean_session=None if is_v5 else False,
            protocol=self.protocol,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        if self.address.user:
            client.username_pw_set(self.address.user, self.address.password)
        if self.address.is_tls:
            client.tls_set()
            # Else acknowledgements are written by the thread that makes them, and two threads in one TLS connection
            # break it. With this the network thread writes them.
            client.on_socket_register_write = _leave_writing
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        return client

    def _session_options(self) -> dict[str, Any]:
        if self.protocol is not MQTTProtocolVersion.MQTTv5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0xFFFFFFFF  # never
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        return {"clean_start": False, "properties": properties}

    def _on_connect(
        self, client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            log.warning("broker %s:%d refuses: %s", self.address.host, self.address.port, reason)
            # 132 in MQTT 5, 1 in an answer of 3.1.1; any other refusal may pass, and is no reason to speak 3.1.1.
            self._speaks_older = reason.value in (1, 132) or "protocol version" in str(reason).lower()
            self._refused.set()
            return
        self.connection += 1
        self.is_connected = True
        client.subscribe([(topic, 1) for topic in SUBSCRIPTIONS])
        log.info(
            "connected to broker %s:%d, MQTT %s", self.address.host, self.address.port,
            "5" if self.protocol is MQTTProtocolVersion.MQTTv5 else "3.1.1",
        )  # fmt: skip

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._taken += 1
        try:
            topic = message._topic.decode("utf-8", "replace")  # .topic raises on what is not UTF-8
            self.inbox.put(
                RawMessage(topic, bytes(message.payload), self.clock(), message.mid, message.qos, self.connection)
            )
        except Exception:
            self.failures += 1
            log.exception("a message could not be taken in")


def _leave_writing(_client: paho.Client, _userdata: object, _socket: object) -> None:
    pass


class Publisher:
    """Publishes at QoS 1 with at most `window` messages unacknowledged."""

    def __init__(self, url: str, client_id: str = "", window: int = 1000) -> None:
        self.address = Address.of(url)
        self.window = window
        self.acknowledged = 0
        self.published = 0
        self._changed = threading.Condition()
        self._is_connected = False
        self._refusal: str | None = None
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
        self._client.max_inflight_messages_set(window)
        self._client.max_queued_messages_set(0)
        if self.address.user:
            self._client.username_pw_set(self.address.user, self.address.password)
        if self.address.is_tls:
            self._client.tls_set()
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    def connect(self, timeout_s: float = 10.0) -> None:
        """Connect; ConnectionError where there is no broker, or it refuses."""
        try:
            self._client.connect(self.address.host, self.address.port, keepalive=60)
        except OSError as error:
            raise ConnectionError(f"broker {self.address.host}:{self.address.port}: {error}") from error
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_connected or self._refusal is not None, timeout_s)
        if not self._is_connected:
            self.close()
            raise ConnectionError(f"broker {self.address.host}:{self.address.port}: {self._refusal or 'no answer'}")

    def publish(self, topic: str, payload: bytes, is_retained: bool = False) -> None:
        """Hand over one message, waiting while `window` are unacknowledged. Survives a lost connection: what was not
        acknowledged is sent again."""
        with self._changed:
            self._changed.wait_for(lambda: self.published - self.acknowledged < self.window)
            self.published += 1
        self._client.publish(topic, payload, qos=1, retain=is_retained)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until all are acknowledged; TimeoutError if that takes longer."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.acknowledged >= self.published, timeout_s):
                raise TimeoutError(f"{self.published - self.acknowledged} messages unacknowledged after {timeout_s} s")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, _client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        with self._changed:
            self._is_connected = not reason.is_failure
            self._refusal = str(reason) if reason.is_failure else None
            self._changed.notify_all()

    def _on_disconnect(
        self, _client: paho.Client, _userdata: object, _flags: object, _reason: ReasonCode, _properties: object
    ) -> None:
        with self._changed:
            self._is_connected = False

    def _on_publish(
        self, _client: paho.Client, _userdata: object, _mid: int, _reason: ReasonCode, _properties: object
    ) -> None:
        with self._changed:
            self.acknowledged += 1
            self._changed.notify_all()
