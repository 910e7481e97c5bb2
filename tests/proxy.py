"""Something between a client and a broker that does what networks do."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading


class Proxy:
    """Passes bytes on in pieces of random sizes, up to `largest`. Can be cut, and can lose what clients say."""

    def __init__(self, url: str, largest: int = 1 << 16) -> None:
        found = re.search(r":(\d+)$", url)
        assert found, url
        self.target = int(found[1])
        self.largest = largest
        self.chance = random.Random(1)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{url[: found.start()]}:{self.listening.getsockname()[1]}"
        self.open: list[socket.socket] = []
        self.unheard: bytes | None = None  # clients whose first words hold this are not heard any more
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listening.accept()[0]
                try:
                    server = socket.create_connection(("127.0.0.1", self.target), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.open += [client, server]
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, from_: socket.socket, to: socket.socket, is_client: bool) -> None:
        first = b""
        with contextlib.suppress(OSError):
            while data := from_.recv(self.largest):
                first = (first + data)[:200]
                if is_client and self.unheard is not None and self.unheard in first:
                    continue
                while data:
                    size = self.chance.randint(1, self.largest)
                    to.sendall(data[:size])
                    data = data[size:]
        _cut(from_, to)

    def cut(self) -> None:
        """Every connection at once."""
        cut, self.open = self.open, []
        _cut(*cut)

    def close(self) -> None:
        self.listening.close()
        self.cut()


def _cut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
