"""A PostgreSQL server of one's own, for as long as it is needed; serving/conftest.py and bench/store.py load it.

It listens on loopback and on a socket in a temporary folder, which goes with it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROLE, PASSWORD = "wardcast", "p@ss/w:rd"
CERTIFICATE = [
    *(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ),
    *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
    *("-keyout", "server.key", "-out", "server.crt"),
]
INITDB = [
    *("-D", "data", "-U", "postgres", "--no-sync", "--encoding=UTF8"),
    *("--auth-local=trust", "--auth-host=scram-sha-256"),
]


@dataclass(frozen=True)
class Server:
    """A running server.

    ``folder`` holds its socket, and ``server.crt`` where it speaks TLS.
    """

    folder: Path
    port: int

    @property
    def has_tls(self) -> bool:
        """Whether there was an openssl to make it a certificate."""
        return (self.folder / "server.crt").exists()

    def url(self, database: str, **parameters: str) -> str:
        """Address of a database over loopback, as ``WARDCAST_STORE_URL`` wants it."""
        asked = "&".join(f"{k}={quote(v, safe='')}" for k, v in parameters.items())
        place = f"{ROLE}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"
        return f"postgresql+psycopg://{place}{'?' if asked else ''}{asked}"

    def socket_url(self, database: str) -> str:
        """The same over the socket, where no password is asked for."""
        return f"postgresql://{ROLE}@:{self.port}/{database}?host={quote(str(self.folder), safe='')}"

    def run(self, statement: str, database: str = "postgres") -> None:
        """One statement as the superuser."""
        with _connect(self.folder, self.port, database) as connection:
            connection.execute(statement)

    def create(self, database: str, more: str = "") -> None:
        """A database that belongs to the role of :meth:`url`."""
        self.run(f"create database {database} owner {ROLE} template template0 {more or 'encoding utf8'}")


def missing() -> str | None:
    """Why no server can be started here; None where one can."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed: run make setup"
    if _binaries() is None:
        return "no PostgreSQL server on this machine: install the Debian package postgresql"
    return None


@contextmanager
def running(*, durable: bool) -> Iterator[Server]:
    """Start a server, and stop it at the end.

    Parameters
    ----------
    durable
        As a hospital runs it; else without waiting for the disk, for tests.
    """
    binaries, folder = _binaries(), Path(tempfile.mkdtemp(prefix="wardcast-pg-"))
    assert binaries is not None, missing()
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user.pw_uid, user.pw_gid)
    _prepare(binaries, folder, user)
    server = Server(folder, _free_port())
    process = _start(binaries, server, user, durable)
    try:
        _wait_for(server, process)
        server.run(f"create role {ROLE} login password '{PASSWORD}'")
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    """The folder with initdb and postgres; Debian keeps it off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    config = shutil.which("pg_config")
    if config is not None:
        said = subprocess.run(
            [config, "--bindir"], capture_output=True, text=True, check=False
        ).stdout.strip()
        found.append(Path(said))
    return next((p for p in found if (p / "initdb").exists() and (p / "postgres").exists()), None)


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs the server: ourselves, or, since PostgreSQL refuses root, somebody without rights."""
    if os.geteuid() != 0:
        return None
    known = {p.pw_name: p for p in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return identity | {"env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}, "stdin": subprocess.DEVNULL}


def _prepare(binaries: Path, folder: Path, user: pwd.struct_passwd | None) -> None:
    _run([binaries / "initdb", *INITDB], folder, user)
    if shutil.which("openssl") is not None:
        _run(CERTIFICATE, folder, user)


def _run(command: Sequence[object], folder: Path, user: pwd.struct_passwd | None) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False, **_as(user)
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _start(
    binaries: Path, server: Server, user: pwd.struct_passwd | None, durable: bool
) -> subprocess.Popen[bytes]:
    settings = {
        "listen_addresses": "127.0.0.1", "port": server.port, "unix_socket_directories": server.folder,
        "max_connections": 80, "shared_buffers": "64MB", "fsync": "on" if durable else "off",
    }  # fmt: skip
    if server.has_tls:
        files = {"ssl_cert_file": server.folder / "server.crt", "ssl_key_file": server.folder / "server.key"}
        settings |= {"ssl": "on"} | files
    # A test run that is killed takes its server along.
    orderly = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
    command = [*orderly, str(binaries / "postgres"), "-D", "data"]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (server.folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=server.folder, stdout=log, stderr=log, **_as(user))


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            _connect(server.folder, server.port, "postgres").close()
            return
        except psycopg.OperationalError:
            said = (server.folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.05)


def _connect(folder: Path, port: int, database: str) -> Any:
    import psycopg

    return psycopg.connect(host=str(folder), port=port, user="postgres", dbname=database, autocommit=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
