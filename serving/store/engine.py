"""Opening the database: the only module that speaks SQLite's own dialect.

SQLite files are encrypted with SQLCipher and written ahead with full synchronisation, so that what was acknowledged
survives a power cut. Everything else in the store is SQLAlchemy Core and runs on PostgreSQL unchanged
(:mod:`serving.store.postgres` opens that).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from features.errors import ConfigError, DataError
from serving.store import postgres
from serving.store.tables import SCHEMA_VERSION, audit_head, metadata, schema_version

BUSY_MS = 15_000
CACHE_KIB = 32 * 1024
"""Pages of the file that a connection keeps. SQLite's own 2 MiB are soon full; a page read again is decrypted again."""
AT_ONCE = 64
"""Deeds that share one transaction."""
UNWRITABLE: Final = (
    "The store {path} cannot be written ({why}). Is its disk full or read-only, or its folder not ours?"
)
T = TypeVar("T")
GENESIS = "0" * 64


class Database:
    """One engine, with reading and writing transactions.

    Writers of this process queue on a lock, writers of other processes on the database's own; readers never wait.
    """

    def __init__(
        self, engine: Engine, reading: Mapping[str, Any] | None = None, writers: str = "store"
    ) -> None:
        self._engine = engine
        self._readers = engine.execution_options(**reading or {})
        self._writers = engine.execution_options(wardcast_write=writers)
        self._lock = Lock()
        self._turn = Lock()
        self._queue: deque[_Job[Any]] = deque()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view of the store."""
        with self._readers.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing; durable once the block has ended."""
        with self._lock, self._writers.begin() as connection:
            yield connection

    def together(self, deed: Callable[[Connection], T]) -> T:
        """Do a deed in a transaction that it may share with those of others who came meanwhile; durable on return.

        One synchronisation of the disk then serves them all. A deed that fails undoes itself alone.
        """
        job = _Job(deed)
        self._queue.append(job)
        with self._turn:
            if not job.done:
                self._serve()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # set by the deed that is done

    def _serve(self) -> None:
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), AT_ONCE))]
        try:
            with self.write() as connection:
                for job in jobs:
                    job.do(connection, alone=len(jobs) == 1)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
        for job in jobs:
            job.done = True

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


class _Job(Generic[T]):
    """A deed on its way into a transaction, in the context of whoever asked for it."""

    def __init__(self, deed: Callable[[Connection], T]) -> None:
        self._deed = deed
        self._context = copy_context()
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False

    def do(self, connection: Connection, alone: bool) -> None:
        """Do it. Where it shares the transaction, its failure is its own."""
        if alone:
            self.result = self._context.run(self._deed, connection)
            return
        try:
            with connection.begin_nested():
                self.result = self._context.run(self._deed, connection)
        except Exception as error:
            self.error = error


def open_database(url: str, key: str | None, writers: str = "store", cache_kib: int = CACHE_KIB) -> Database:
    """Open a store, and lay its tables out if it is new.

    Parameters
    ----------
    writers
        Writers of one name queue; those of different names, who write to different tables, do not wait for each other
        where they share a PostgreSQL database.
    cache_kib
        Memory for the pages of an SQLite file, each connection.

    Raises
    ------
    ConfigError
        The URL is of another kind, the key does not open the file, or the server does not let us in.
    DataError
        The store was written by another version.
    """
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        try:
            database = Database(_sqlite(path, key, cache_kib))
        except OSError as error:
            raise ConfigError(UNWRITABLE.format(path=path, why=error.strerror)) from None
    elif url.startswith("postgresql"):
        database = Database(postgres.open_engine(url), postgres.READING, writers)
    else:
        raise ConfigError(f"WARDCAST_STORE_URL must be sqlite:///PATH or {postgres.FORM}.")
    try:
        _lay_out(database)
    except BaseException as error:
        database.close()
        known = _explain(error) if isinstance(error, DatabaseError) else None
        if known is not None:
            raise known from None
        raise
    return database


def _explain(error: DatabaseError) -> ConfigError | None:
    """What keeps a database from opening, in words of ours; None where we have none."""
    if "not a database" in str(error.orig):
        return ConfigError(
            "The store is not readable with this key. Restore the key that belongs to it "
            "(WARDCAST_STORE_KEY_FILE, by default var/key)."
        )
    if any(
        sign in str(error.orig) for sign in ("readonly database", "is full", "unable to open", "disk I/O")
    ):
        return ConfigError(UNWRITABLE.format(path="(WARDCAST_STORE_URL)", why=error.orig))
    return postgres.explain(error)


def is_passing(error: BaseException) -> bool:
    """Whether a failure lies with the store (full, locked, read-only, away) rather than with what was to be done."""
    return isinstance(error, OperationalError | OSError) or (
        isinstance(error, DBAPIError) and not isinstance(error, IntegrityError)
    )


def _lay_out(database: Database) -> None:
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            postgres.check(connection)
        if not inspect(connection).has_table(schema_version.name):
            metadata.create_all(connection, checkfirst=False)  # tables of others are not ours to write to
            connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
            connection.execute(insert(audit_head).values(id=1, seq=0, hash=GENESIS))
        found = connection.execute(select(func.max(schema_version.c.version))).scalar()
    if found != SCHEMA_VERSION:
        raise DataError(
            f"The store has schema {found}, this version reads schema {SCHEMA_VERSION}. "
            "Run the version that wrote it, or point WARDCAST_STORE_URL at a new store."
        )


def _sqlite(path: Path, key: str | None, cache_kib: int) -> Engine:
    from sqlcipher3 import dbapi2

    if key is not None and not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ConfigError("The key of the store must be 256 bits, as 64 hex digits.")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def connect() -> Any:
        connection = dbapi2.connect(str(path), check_same_thread=False, isolation_level=None)
        if key is not None:
            connection.execute(f"pragma key=\"x'{key}'\"")
        connection.execute(f"pragma busy_timeout={BUSY_MS}")
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")
        connection.execute("pragma temp_store=memory")
        connection.execute(f"pragma cache_size=-{cache_kib}")
        return connection

    engine = create_engine(
        "sqlite://", module=dbapi2, creator=connect, poolclass=QueuePool, pool_size=8, pool_use_lifo=True,
        hide_parameters=True,
    )  # fmt: skip
    event.listen(engine, "begin", _begin)
    path.touch(mode=0o600)
    return engine


def _begin(connection: Connection) -> None:
    """Writers take the write lock at once: two of them can then never deadlock on an upgrade."""
    write = "wardcast_write" in connection.get_execution_options()
    connection.exec_driver_sql("begin immediate" if write else "begin")
