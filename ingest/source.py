"""The MQTT reader of our own, behind the interface of `ingest.mqtt.PahoSource`: one thread carries bytes between a
socket, an `ingest.conversation` and the inbox. Nothing here is done for a single message.

What paho could not: while the inbox is full nothing is read, so that TCP holds the broker back, but acknowledgements
and pings go on, and the connection stays. paho waits within its network thread, so that the broker gives us up after
1.5 times the keepalive. It also waits with `select`, which fails where the process has 1,024 files open.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ingest import wire
from ingest.conversation import KEEPALIVE_S, SUBSCRIPTIONS, Address, Conversation, End, Terms
from ingest.inbox import Inbox
from ingest.messages import Messages
from twin.model import Micros, RawMessage

log = logging.getLogger(__name__)

READ: Final = 512 * 1024  # bytes in one go
COALESCE_S: Final = 0.002  # what arrives meanwhile is read in one go
MUCH: Final = 32 * 1024  # where a read brings so many bytes, the next one waits longer
COALESCE_MUCH_S: Final = 0.004
CONNECT_S: Final = 5.0
LEAVE_S: Final = 2.0  # for the last acknowledgements and the good-bye, and the broker to have read them
PAUSE_S: Final = (0.2, 5.0)  # between two tries, doubled each time
SETTLED_S: Final = 5.0  # a connection that held as long is no failed try


class WireSource:
    """Messages from a broker: MQTT 5 where it speaks that (`tries_v5`: and may), else 3.1.1.

    A persistent session under a fixed client id; a message is acknowledged only when told to. Of a payload longer than
    `keep_bytes` the rest may be left out (`RawMessage.left_out`). Bound, besides the inbox: what one read gives that
    the inbox has no room for, and one message. Counters: `failures` (bugs met and survived), `connection` (so many
    were made).
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        inbox: Inbox,
        clock: Callable[[], Micros],
        tries_v5: bool = True,
        keep_bytes: int = 1 << 20,
        keepalive_s: int = KEEPALIVE_S,
    ) -> None:
        self.address = Address.of(url)
        self.client_id = client_id
        self.inbox = inbox
        self.clock = clock
        self.connection = 0
        self.is_connected = False
        self.failures = 0
        self.is_v5 = tries_v5
        self.keep_bytes = keep_bytes
        self.keepalive_s = keepalive_s
        self._buffer = memoryview(bytearray(READ))
        self._current = 0  # the connection that takes acknowledgements; 0: none
        self._acknowledgements = bytearray()  # for it
        self._lock = threading.Lock()  # of these two
        self._stopping = threading.Event()
        self._waker: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect; the session stays with the broker."""
        self._stopping.set()
        self.inbox.close()
        self._wake()
        if self._thread is not None:
            self._thread.join(10)

    def acknowledge(self, messages: Sequence[RawMessage]) -> None:
        """Tell the broker that these are safe. Those of an earlier connection are left out: their packet ids may
        mean other messages by now, and the broker sends them again."""
        current = self._current
        packet_ids = Messages.of(messages).packet_ids(current)
        if not packet_ids:
            return
        packets = wire.pubacks(packet_ids)
        with self._lock:
            if self._current == current:
                self._acknowledgements += packets
        self._wake()

    def _wake(self) -> None:
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):  # full: it wakes anyhow; closed: the thread is through
                waker.send(b"\0")

    def _run(self) -> None:
        """Keep a connection until stopped."""
        heard, self._waker = socket.socketpair()
        heard.setblocking(False)
        self._waker.setblocking(False)
        self.inbox.on_room = self._wake
        shortest, longest = PAUSE_S
        pause = shortest
        while not self._stopping.is_set():
            begun = time.monotonic()
            why, is_older_wanted = "", False
            try:
                end = self._connect(heard)
                why, is_older_wanted = f" {end.text}", end.is_older_wanted
            except OSError as error:
                why = f": {error}"
            except Exception:
                self.failures += 1
                log.exception("the MQTT connection failed unexpectedly")
            if why and not self._stopping.is_set():
                lost = "lost the " if self.is_connected else ""
                log.warning("%sbroker %s:%d%s", lost, self.address.host, self.address.port, why)
            self.is_connected = False
            with self._lock:
                self._current = 0
                self._acknowledgements.clear()
            if is_older_wanted:
                self.is_v5 = False
                continue
            if time.monotonic() - begun > SETTLED_S:
                pause = shortest
            self._stopping.wait(pause)
            pause = min(pause * 2, longest)
        heard.close()
        self._waker.close()

    def _connect(self, heard: socket.socket) -> End:
        """One connection, from its beginning to its end."""
        address = self.address
        with self._socket() as connected:
            terms = Terms(
                self.client_id, address.user, address.password, SUBSCRIPTIONS, self.is_v5, keepalive_s=self.keepalive_s
            )
            conversation = Conversation(terms, self.connection + 1, self.keep_bytes, time.monotonic())
            return self._converse(conversation, _Line(connected, heard, self._buffer))

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        address = self.address
        with socket.create_connection((address.host, address.port), CONNECT_S) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not address.is_tls:
                plain.setblocking(False)
                yield plain
                return
            context = ssl.create_default_context()
            with context.wrap_socket(plain, server_hostname=address.host) as wrapped:
                wrapped.setblocking(False)
                yield wrapped

    def _converse(self, conversation: Conversation, line: _Line) -> End:
        """Carry bytes until one side has enough. Messages that the inbox has no room for wait here, and nothing is read
        until they are in."""
        waiting = Messages()
        read_at = 0.0  # not before, so that what comes meanwhile is one read
        is_dry = False  # nothing to read was left: wait for more
        while conversation.end is None:
            now = time.monotonic()
            if waiting:
                waiting = waiting[self.inbox.put_many(waiting) :]
            is_reading = not waiting
            wait_s = conversation.tick(now, is_reading)
            with self._lock:
                if self._acknowledgements:
                    conversation.acknowledge(self._acknowledgements, now)
                    self._acknowledgements.clear()
            if self._stopping.is_set():
                conversation.leave(now)
                line.send_last(conversation.outgoing)
                return End("is left")
            line.send(conversation.outgoing)
            if not is_reading or is_dry or now < read_at:
                if is_reading and not is_dry:
                    wait_s = min(wait_s, read_at - now)
                if line.wait(is_reading and is_dry, bool(conversation.outgoing), wait_s):
                    is_dry = False
                continue
            data = line.read()
            if data is None:
                is_dry = True
            elif not len(data):
                raise ConnectionError("closed the connection")
            else:
                waiting = conversation.receive(data, now, self.clock())
                if len(data) < READ:
                    read_at = now + (COALESCE_S if len(data) < MUCH else COALESCE_MUCH_S)
                else:
                    read_at = now
                self._take_note(conversation)
        return conversation.end

    def _take_note(self, conversation: Conversation) -> None:
        """Show others what the conversation has come to."""
        for remark in conversation.remarks:
            log.error("broker %s:%d %s", self.address.host, self.address.port, remark)
        conversation.remarks.clear()
        if conversation.is_accepted and not self._current:
            self.connection += 1
            with self._lock:
                self._current = self.connection
        if conversation.is_open and not self.is_connected:
            self.is_connected = True
            log.info(
                "connected to broker %s:%d, MQTT %s", self.address.host, self.address.port,
                "5" if self.is_v5 else "3.1.1",
            )  # fmt: skip


class _Line:
    """A connected socket that never blocks, TLS or not, and the one on which others wake its thread."""

    def __init__(self, connected: socket.socket, heard: socket.socket, buffer: memoryview) -> None:
        self._socket = connected
        self._heard = heard
        self._buffer = buffer
        self._polled = select.poll()
        self._polled.register(heard, select.POLLIN)
        self._events = 0
        self._wants_write = False  # TLS, of itself

    def read(self) -> memoryview | None:
        """What has come, up to the buffer's size; None if nothing has, empty at the end."""
        buffer, size = self._buffer, 0
        try:
            if not isinstance(self._socket, ssl.SSLSocket):
                return buffer[: self._socket.recv_into(buffer)]
            while size < len(buffer):  # at most 16 KiB at a time
                part = self._socket.recv_into(buffer[size:])
                if not part:
                    return buffer[:size] if size else buffer[:0]
                size += part
        except ssl.SSLWantWriteError:
            self._wants_write = True
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            pass
        return buffer[:size] if size else None

    def send(self, outgoing: bytearray) -> None:
        """As much from the front of `outgoing` as goes now."""
        while outgoing:
            try:
                sent = self._socket.send(outgoing)
            except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del outgoing[:sent]

    def send_last(self, outgoing: bytearray) -> None:
        """All of it, and wait for the other side to hang up: only then has it read everything. For a short time."""
        deadline = time.monotonic() + LEAVE_S
        self._socket.settimeout(LEAVE_S)
        with contextlib.suppress(OSError):
            self._socket.sendall(outgoing)
            while self._socket.recv_into(self._buffer) and time.monotonic() < deadline:
                pass

    def wait(self, for_reading: bool, for_writing: bool, timeout_s: float) -> bool:
        """Wait until something can be done or someone wakes us; whether there is something to read."""
        events = (select.POLLIN if for_reading else 0) | (select.POLLOUT if for_writing or self._wants_write else 0)
        if events != self._events:
            if events:
                self._polled.register(self._socket, events)
            else:
                self._polled.unregister(self._socket)
            self._events = events
        self._wants_write = False
        found = dict(self._polled.poll(max(0.0, timeout_s) * 1000))
        if found.pop(self._heard.fileno(), 0):
            with contextlib.suppress(BlockingIOError):
                self._heard.recv(4096)
        return bool(found)
