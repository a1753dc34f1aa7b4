"""A light HTTP client, as a process of its own: one request over and over, on a few connections, without a library.

``python _load.py PLAN.json`` prints one JSON object: how many were answered, a second and in which time, and the CPU
that asking took, since who asks and who answers share the machine. With a rate, requests leave on the clock whether or
not earlier ones were answered, and a time counts from when its request was due; without one, each connection asks again
as soon as it was answered.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What to ask, where and how often; ``rate`` in requests a second, 0 for as fast as answers come."""

    port: int
    token: str
    path: str
    body: str
    kind: str = "application/json"
    connections: int = 8
    seconds: float = 10.0
    rate: float = 0.0


def ask(plan: Plan, folder: Path) -> dict[str, Any]:
    """Run a plan in a process of its own; ``body`` names a file."""
    file = folder / "plan.json"
    file.write_text(json.dumps(asdict(plan)))
    command = [sys.executable, __file__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=plan.seconds + 120)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


class _Line:
    """One connection: the request that is out on it, and what came back so far."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._held = b""
        self.due = 0.0

    def send(self, due: float) -> None:
        self.due = due
        self.socket.sendall(self._request)

    def answered(self) -> bool:
        """Read what is there; whether that makes the answer whole."""
        data = self.socket.recv(262_144)
        if not data:
            raise ConnectionError("the service closed the connection")
        self._held += data
        head, end, body = self._held.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(head.partition(b"\r\n")[0].decode())
        size = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(body) < size:
            return False
        self._held = b""
        return True


def run(plan: Plan) -> dict[str, Any]:
    """Ask until the time is over, and wait for the last answers."""
    body = Path(plan.body).read_bytes()
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {plan.token}\r\n"
        f"Content-Type: {plan.kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    lines = [_Line(plan.port, head.encode() + body) for _ in range(plan.connections)]
    idle, times = deque(lines), []
    begun = time.perf_counter()
    until, sent = begun + plan.seconds, 0
    with selectors.DefaultSelector() as ready:
        for line in lines:
            ready.register(line.socket, selectors.EVENT_READ, line)
        while True:
            now = time.perf_counter()
            due = begun + sent / plan.rate if plan.rate else now
            while idle and due <= now and due < until:
                idle.popleft().send(due)
                sent += 1
                due = begun + sent / plan.rate if plan.rate else now
            if len(idle) == len(lines) and due >= until:
                break
            wait = max(0.0, due - now) if plan.rate and idle and due < until else 10.0
            for key, _ in ready.select(wait):
                if key.data.answered():
                    times.append(time.perf_counter() - key.data.due)
                    idle.append(key.data)
    took, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rate": len(times) / took,
        "times": times,
        "cpu_ms": (used.ru_utime + used.ru_stime) / len(times) * 1e3,
    }


if __name__ == "__main__":
    print(json.dumps(run(Plan(**json.loads(Path(sys.argv[1]).read_text())))))
