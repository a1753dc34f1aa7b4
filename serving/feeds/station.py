"""The listener and the reader of its log, each a process: ``wardcast mllp``, which ``wardcast serve`` starts too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from features.errors import ConfigError
from serving.companion import keep_loaded
from serving.ingest.mllp import Listener
from serving.settings import ROOT, Settings
from serving.store.messages import MessageLog

ENDS_WITHIN_S: Final = 10.0
RESTART_S: Final = 2.0
CACHE_KIB: Final = 256 * 1024
"""For the pages of the store that the reader of the log keeps: each event of a backlog touches some at random."""
APPLIER: Final = (sys.executable, "-m", "serving.feeds.station")
LISTENER: Final = (sys.executable, "-m", "cli", "mllp")


class Keeper:
    """Keeps a process running: one that ends is started again, until :meth:`stop`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._command = list(command)
        self._env = {**os.environ, **env}
        self._wanted = threading.Event()
        self._wanted.set()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the process, gently first."""
        self._wanted.clear()
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=self._env, cwd=ROOT)  # noqa: S603  # our own module

    def _keep(self) -> None:
        while self._wanted.is_set():
            self._process.wait()
            if self._wanted.is_set():
                time.sleep(RESTART_S)
                if self._wanted.is_set():
                    self._process = self._start()


def check_port(host: str, port: int, variable: str) -> None:
    """Find out now whether an address can be listened on.

    Raises
    ------
    ConfigError
        It cannot; names the variable.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {host} port {port}: {error.strerror}. Stop what is using it, or set {variable}."
            ) from None


def listen(settings: Settings) -> None:
    """Take messages, and read them into the store, until told to stop.

    Raises
    ------
    ConfigError
        No port is set, or it is taken.
    """
    if settings.mllp_port is None:
        raise ConfigError("No port for HL7 v2 messages. Set WARDCAST_MLLP_PORT, for example 2575.")
    check_port(settings.mllp_host, settings.mllp_port, "WARDCAST_MLLP_PORT")
    log = MessageLog.open(settings.store_url, settings.store_key or None)
    applier = Keeper(APPLIER, settings.environment())
    try:
        asyncio.run(_listen(settings, log))
    finally:
        applier.stop()
        log.close()


async def _listen(settings: Settings, log: MessageLog) -> None:
    listener = Listener(settings, log)
    keep_loaded()
    port = await listener.start()
    print(f"Wardcast takes HL7 v2 over MLLP at {settings.mllp_host} port {port}", flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
    await listener.stop()


def apply() -> None:
    """Read the log into the store: the process that :func:`listen` keeps."""
    from serving.feeds.applier import run
    from serving.state import Wardcast

    settings = Settings.from_env()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever keeps this process ends it
    log = MessageLog.open(settings.store_url, settings.store_key or None)
    run(Wardcast(settings, CACHE_KIB), log)


if __name__ == "__main__":
    apply()
