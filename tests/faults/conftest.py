"""What several of these tests need."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import pytest


class Stalling(socketserver.BaseRequestHandler):
    """Promises a file and never sends it."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        self.server.stalled.wait()  # type: ignore[attr-defined]


@pytest.fixture
def stalling_url() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stalling) as server:
        server.daemon_threads = True
        server.stalled = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/weights.bin"
        server.stalled.set()  # type: ignore[attr-defined]
        server.shutdown()
