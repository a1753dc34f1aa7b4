"""Opening a PostgreSQL store: the only module that speaks PostgreSQL's own dialect.

The data are encrypted at rest by the server's disks, on the way by TLS, and backed up by the server's own means; the
key of an SQLite store has no part in it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from features.errors import ConfigError

BEGIN_WRITING: Final = (
    "select set_config('idle_in_transaction_session_timeout', '60s', true), "
    "pg_advisory_xact_lock(hashtext('wardcast ' || %(writers)s), hashtext(current_schema()))"
)
"""One writer of a name at a time among all processes of a store, until its transaction ends.

Row locks would not do. A score says up to which ``seq`` it read, and is made again by reading up to there: so no
smaller ``seq`` may appear afterwards, as it would where two transactions draw numbers side by side and the later one
commits first. A writer whose machine has vanished keeps the others waiting for a minute, and not for the hours that TCP
takes to notice.
"""
CONNECTION: Final[Mapping[str, str]] = {
    "connect_timeout": "10",
    "application_name": "wardcast",
    "client_encoding": "utf8",
}
SESSION: Final[Mapping[str, str]] = {
    "lock_timeout": "15s",
    "extra_float_digits": "1",  # doubles come back to the bit, whatever the role's default is
    "timezone": "UTC",
}
DURABLE: Final = (
    "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
)
NUL_KEPT_AS: Final = "\ufdd0"
"""PostgreSQL cannot keep a NUL in a text, and an HL7 message may have one anywhere. Unicode reserves this code point
for such use inside a program; it becomes a NUL again on reading."""
FORM: Final = "postgresql+psycopg://user@host:5432/database"
READING: Final[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""One snapshot for all statements of a reading transaction. Writers stay at READ COMMITTED: their snapshots are then
taken after the wait for the lock, and show what the writer before them did."""
REMEDIES: Final[Mapping[str, str]] = {
    "42501": "The role of WARDCAST_STORE_URL may not make tables there. Make it the owner of the database, or run: "
    "grant create, usage on schema public to that role.",
    "42P07": "The database of WARDCAST_STORE_URL holds tables of something else. Give Wardcast a database of its own.",
    "25006": "The server of WARDCAST_STORE_URL only reads. Name the primary, or add target_session_attrs=read-write.",
    "55P03": "Another process has been writing to the store for 15 s. Find it in pg_stat_activity, and start again.",
}
logger = logging.getLogger("wardcast")


def open_engine(url: str) -> Engine:
    """An engine for a PostgreSQL URL; connects to nothing yet.

    Raises
    ------
    ConfigError
        The driver is missing, the URL is of another form, or would reach another machine without verified TLS.
    """
    made = _parsed(url)
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            "A PostgreSQL store needs the driver psycopg. Run: make setup, or install wardcast[postgres]."
        ) from None
    made = made.update_query_dict({k: v for k, v in CONNECTION.items() if k not in made.query})
    # Parameters are patients' data: an error that travels may not carry them.
    engine = create_engine(made, pool_size=8, pool_pre_ping=True, hide_parameters=True)
    _require_tls(_defaults() | {k: str(v) for k, v in engine.dialect.create_connect_args(made)[1].items()})
    event.listen(engine, "connect", _settle_session)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _notice_loss)
    logger.info("store kind=postgresql key=unused encrypted_at_rest_by=server")
    return engine


def check(connection: Connection) -> None:
    """Find out whether the database can hold what we are told, and be the only one who lays it out.

    Raises
    ------
    ConfigError
        Its encoding cannot write every name.
    """
    connection.exec_driver_sql(BEGIN_WRITING, {"writers": "layout"})
    encoding = connection.exec_driver_sql("show server_encoding").scalar()
    if encoding != "UTF8":
        raise ConfigError(
            f"The database of WARDCAST_STORE_URL has encoding {encoding}, which cannot hold every text. "
            "Make it anew: createdb --encoding UTF8 --template template0 NAME."
        )


def explain(error: DatabaseError) -> ConfigError | None:
    """What an error on opening means for whoever starts the service; None where we do not know."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str) and state in REMEDIES:
        return ConfigError(REMEDIES[state])
    said = " ".join(str(error.orig).split())
    if state is None and said.startswith(
        ("connection", "Multiple connection")
    ):  # libpq names no password here
        return ConfigError(
            "The PostgreSQL server of WARDCAST_STORE_URL does not let us in. Check host, port, database and role; a "
            f"password may stand in ~/.pgpass instead of the URL. What was said: {said}"
        )
    return None


def _parsed(url: str) -> URL:
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # whose text would hold the password
        raise ConfigError(f"WARDCAST_STORE_URL cannot be read. Write it as {FORM}.") from None
    if made.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ConfigError(f"WARDCAST_STORE_URL names another driver than psycopg. Write it as {FORM}.")
    if "service" in made.query:
        raise ConfigError("WARDCAST_STORE_URL names a service. Write out its host, or set PGSERVICE instead.")
    return made.set(drivername="postgresql+psycopg")


def _defaults() -> dict[str, str]:
    """What libpq takes from PG* variables and service files for parameters that the URL leaves out."""
    from psycopg import pq

    return {d.keyword.decode(): d.val.decode() for d in pq.Conninfo.get_defaults() if d.val}


def _require_tls(parameters: Mapping[str, str]) -> None:
    """Refuse another machine, unless what travels is encrypted and the server proves its name."""
    hosts = (parameters.get("hostaddr") or parameters.get("host") or "").split(",")
    mode = parameters.get("sslmode", "prefer")
    if mode != "verify-full" and not all(map(_is_here, hosts)):
        raise ConfigError(
            "The server of WARDCAST_STORE_URL is another machine, and patients' data may travel there only over TLS "
            f"with the server's name checked; sslmode is {mode}. "
            "Add ?sslmode=verify-full&sslrootcert=/path/to/ca.pem to the URL."
        )


def _is_here(host: str) -> bool:
    """Whether a host is this machine: a socket's folder, or loopback."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _settle_session(connection: Any, _record: object) -> None:
    _keep_nul(connection.adapters)
    with connection.cursor() as cursor:
        for name, value in SESSION.items():
            cursor.execute("select set_config(%s, %s, false)", (name, value))
        cursor.execute(DURABLE)
    connection.commit()


def _keep_nul(adapters: Any) -> None:
    """Have texts written and read with :data:`NUL_KEPT_AS` in the place of NUL."""
    from psycopg.adapt import Loader
    from psycopg.types.string import StrDumperUnknown

    class Written(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", NUL_KEPT_AS) if "\0" in obj else obj)

    class Read(Loader):
        def load(self, data: Any) -> Any:
            text = str(data, "utf-8")
            return text.replace(NUL_KEPT_AS, "\0") if NUL_KEPT_AS in text else text

    adapters.register_dumper(str, Written)
    for kind in ("text", "varchar"):
        adapters.register_loader(kind, Read)


def _notice_loss(context: ExceptionContext) -> None:
    """The server hangs up on a writer that is idle too long; SQLAlchemy would not see that the connection is lost."""
    if getattr(context.original_exception, "sqlstate", None) == "25P03":
        context.is_disconnect = True


def _begin(connection: Connection) -> None:
    writers = connection.get_execution_options().get("wardcast_write")
    if writers is not None:
        connection.exec_driver_sql(BEGIN_WRITING, {"writers": writers})
