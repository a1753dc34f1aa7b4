"""Where the service runs: settings from ``WARDCAST_*`` variables, read once.

The defaults are the safe ones: loopback, a generated token, an encrypted store with a generated key. Any other address
needs configured credentials and TLS, or the service does not start.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from features.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SEPSIS_MODEL = ROOT / "models" / "sepsis" / "released"
ADMISSIONS_MODEL = ROOT / "models" / "admissions" / "released"
PREFIX = "WARDCAST_"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the service takes from its surroundings.

    Attributes
    ----------
    var : Path
        Everything made at run time lives here.
    host, port : str, int
        One address, one port.
    token : str or None
        The generated token of a loopback service; None where ``tokens_file`` names the credentials.
    tokens_file : Path or None
        ``name,role,sha256`` a line: who may call, as what, and the SHA-256 of their token.
    tls_cert, tls_key : Path or None
        PEM files. Needed on any address but loopback.
    store_url, store_key, store_key_file
        ``sqlite:///path``, the 256-bit key of its encryption as 64 hex digits, and the file that keeps it; or
        ``postgresql+psycopg://…``, which has no key.
    sepsis_model, admissions_model : Path
        Bundle folders.
    timezone : str
        The site's; pages, calendars and huddle times follow it. APIs are UTC.
    clock : "wall" or "replay"
        With "replay" the sender's ``as_of`` is the service's now: for demos and tests.
    max_body_bytes, max_events : int
        What one request may carry.
    mllp_host, mllp_port : str, int or None
        Where HL7 v2 messages are taken over MLLP; nowhere without a port.
    mllp_max_bytes : int
        What one message may hold.
    mllp_keep_days : int
        How long messages are kept after they were read; for ever where 0.
    mllp_senders : tuple of str
        Who may send: addresses, networks, MSH-3 or MSH-3@MSH-4; anyone where empty.
    site_map : Path or None
        What the site's own codes, units and places mean; see :mod:`features.sources.vocabulary`.
    public_url : str
        Where callers find the service, without a slash at the end; links of cards and the audience of tokens.
    cds_file : Path or None
        The CDS clients that may ask for cards, and which cards they get; see :mod:`serving.security.clients`.
    alerts_file : Path or None
        The site's rules of alerting and whom to tell; see :mod:`serving.alerting`.
    push_file : Path or None
        The FHIR server that is told of every score; see :mod:`serving.interop.smart`.
    huddles : tuple of str
        Local clock times (``08:00``) at which the bed report is written, and posted where there is a mail server.
    feeds_minutes : int or None
        How often the monitor looks at the feeds for silence and flood; see :mod:`serving.monitoring.intake`.
    monitor : tuple of str
        Local clock times at which the monitor runs; never by itself where empty.
    smtp, mail_from, mail_to, smtp_password_file
        The mail server, the sender, the readers and the password; see :mod:`serving.reports.mail`.
    """

    var: Path
    host: str = "127.0.0.1"
    port: int = 3000
    token: str | None = field(default=None, repr=False)
    tokens_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    store_url: str = field(default="", repr=False)
    store_key: str = field(default="", repr=False)
    store_key_file: Path | None = None
    sepsis_model: Path = SEPSIS_MODEL
    admissions_model: Path = ADMISSIONS_MODEL
    timezone: str = "UTC"
    clock: Literal["wall", "replay"] = "wall"
    log_level: str = "info"
    site: str = "site"
    workers: int = 1
    max_body_bytes: int = 8 * 1024 * 1024
    max_events: int = 10_000
    mllp_host: str = "127.0.0.1"
    mllp_port: int | None = None
    mllp_max_bytes: int = 20 * 1024 * 1024
    mllp_keep_days: int = 0
    mllp_senders: tuple[str, ...] = ()
    site_map: Path | None = None
    public_url: str = ""
    cds_file: Path | None = None
    alerts_file: Path | None = None
    push_file: Path | None = None
    huddles: tuple[str, ...] = ()
    monitor: tuple[str, ...] = ()
    feeds_minutes: int | None = None
    smtp: str = ""
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()
    smtp_password_file: Path | None = None

    def __post_init__(self) -> None:
        _check_address(self)
        if self.clock not in ("wall", "replay"):
            raise ConfigError("WARDCAST_CLOCK must be wall or replay.")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"WARDCAST_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}.")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ConfigError(
                f"WARDCAST_TIMEZONE {self.timezone!r} is not a time zone. Write for example Europe/Berlin."
            ) from None

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, make: bool = True) -> Settings:
        """Read the settings, and make the token and the key where there are none yet.

        With ``make`` false nothing is made, which is for commands that only look at what a service has left.

        Raises
        ------
        ConfigError
            A value cannot be used, the combination is unsafe, or there is no store to look at. Names the variable and
            the remedy, never a secret.
        """
        given = os.environ if env is None else env
        read = {
            k.removeprefix(PREFIX): v.strip() for k, v in given.items() if k.startswith(PREFIX) and v.strip()
        }
        var = Path(read.get("VAR", "var")).absolute()
        tokens_file = _path(read, "TOKENS_FILE")
        url = read.get("STORE_URL", f"sqlite:///{var / 'wardcast.db'}")
        if not make:
            _there(url)
        settings = cls(
            var=var,
            host=_address(read.get("HOST", "127.0.0.1")),
            port=_number(read, "PORT", 3000, 0, 65_535),
            tokens_file=tokens_file,
            tls_cert=_path(read, "TLS_CERT"),
            tls_key=_path(read, "TLS_KEY"),
            store_url=url,
            store_key_file=_path(read, "STORE_KEY_FILE") or var / "key",
            sepsis_model=_path(read, "SEPSIS_MODEL") or SEPSIS_MODEL,
            admissions_model=_path(read, "ADMISSIONS_MODEL") or ADMISSIONS_MODEL,
            timezone=read.get("TIMEZONE", "UTC"),
            clock=read.get("CLOCK", "wall"),  # type: ignore[arg-type]  # checked in __post_init__
            log_level=read.get("LOG_LEVEL", "info").lower(),
            site=read.get("SITE", "site"),
            workers=_number(read, "WORKERS", 1, 1, 64),
            max_body_bytes=_number(read, "MAX_BODY_BYTES", 8 * 1024 * 1024, 1024, 1 << 30),
            max_events=_number(read, "MAX_EVENTS", 10_000, 1, 1_000_000),
            mllp_host=_address(read.get("MLLP_HOST", "127.0.0.1"), "MLLP_HOST"),
            mllp_port=_number(read, "MLLP_PORT", 0, 0, 65_535) if "MLLP_PORT" in read else None,
            mllp_max_bytes=_number(read, "MLLP_MAX_BYTES", 20 * 1024 * 1024, 1024, 64 << 20),
            mllp_keep_days=_number(read, "MLLP_KEEP_DAYS", 0, 0, 36_525),
            mllp_senders=_list(read.get("MLLP_SENDERS", "")),
            site_map=_path(read, "SITE_MAP"),
            public_url=_public_url(read.get("PUBLIC_URL", "")),
            cds_file=_path(read, "CDS_FILE"),
            alerts_file=_path(read, "ALERTS_FILE"),
            push_file=_path(read, "PUSH_FILE"),
            huddles=_clock_times(read.get("HUDDLES", ""), "HUDDLES"),
            monitor=_clock_times(read.get("MONITOR", ""), "MONITOR"),
            feeds_minutes=_number(read, "FEEDS_MINUTES", 5, 1, 60) if "FEEDS_MINUTES" in read else None,
            smtp=read.get("SMTP", ""),
            mail_from=read.get("MAIL_FROM", ""),
            mail_to=_list(read.get("MAIL_TO", "")),
            smtp_password_file=_path(read, "SMTP_PASSWORD_FILE"),
        )
        return replace(
            settings,
            token=None if tokens_file or not make else _secret(var / "token", secrets.token_urlsafe(32)),
            store_key=_store_key(settings.store_key_file or var / "key", url),
        )

    def with_sepsis_model(self, folder: Path) -> Settings:
        """The same settings, serving another sepsis bundle."""
        return replace(self, sepsis_model=folder.absolute())

    def with_admissions_model(self, folder: Path) -> Settings:
        """The same settings, forecasting with another admissions bundle."""
        return replace(self, admissions_model=folder.absolute())

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the service."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"

    @property
    def known_as(self) -> str:
        """The address by which callers know the service: ``WARDCAST_PUBLIC_URL``, or its own."""
        return self.public_url or self.url

    def environment(self) -> dict[str, str]:
        """The variables that make another process read these very settings."""
        values: dict[str, object] = {
            "VAR": self.var,
            "HOST": self.host,
            "PORT": self.port,
            "TOKENS_FILE": self.tokens_file,
            "TLS_CERT": self.tls_cert,
            "TLS_KEY": self.tls_key,
            "STORE_URL": self.store_url,
            "STORE_KEY_FILE": self.store_key_file,
            "SEPSIS_MODEL": self.sepsis_model,
            "ADMISSIONS_MODEL": self.admissions_model,
            "TIMEZONE": self.timezone,
            "CLOCK": self.clock,
            "LOG_LEVEL": self.log_level,
            "SITE": self.site,
            "WORKERS": self.workers,
            "MAX_BODY_BYTES": self.max_body_bytes,
            "MAX_EVENTS": self.max_events,
            "MLLP_HOST": self.mllp_host,
            "MLLP_PORT": self.mllp_port,
            "MLLP_MAX_BYTES": self.mllp_max_bytes,
            "MLLP_KEEP_DAYS": self.mllp_keep_days,
            "MLLP_SENDERS": ",".join(self.mllp_senders) or None,
            "SITE_MAP": self.site_map,
            "PUBLIC_URL": self.public_url or None,
            "CDS_FILE": self.cds_file,
            "ALERTS_FILE": self.alerts_file,
            "PUSH_FILE": self.push_file,
            "HUDDLES": ",".join(self.huddles) or None,
            "MONITOR": ",".join(self.monitor) or None,
            "FEEDS_MINUTES": self.feeds_minutes,
            "SMTP": self.smtp or None,
            "MAIL_FROM": self.mail_from or None,
            "MAIL_TO": ",".join(self.mail_to) or None,
            "SMTP_PASSWORD_FILE": self.smtp_password_file,
        }
        return {PREFIX + name: str(value) for name, value in values.items() if value is not None}


def worker_count(env: Mapping[str, str] | None = None) -> int:
    """Worker processes, ``WARDCAST_WORKERS``: BentoML wants to know while its service is being declared."""
    given = os.environ if env is None else env
    return _number({"WORKERS": given.get("WARDCAST_WORKERS", "").strip() or "1"}, "WORKERS", 1, 1, 64)


def _check_address(settings: Settings) -> None:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigError("TLS needs both files: set WARDCAST_TLS_CERT and WARDCAST_TLS_KEY, or neither.")
    if not ipaddress.ip_address(settings.mllp_host).is_loopback and settings.tls_cert is None:
        raise ConfigError(
            f"WARDCAST_MLLP_HOST {settings.mllp_host} is reachable from other machines, which needs TLS. Also set "
            "WARDCAST_TLS_CERT and WARDCAST_TLS_KEY, or use 127.0.0.1 behind a tunnel."
        )
    if settings.is_loopback:
        return
    lacking = [
        name
        for name, value in (
            ("WARDCAST_TOKENS_FILE", settings.tokens_file),
            ("WARDCAST_TLS_CERT", settings.tls_cert),
        )
        if value is None
    ]
    if lacking:
        raise ConfigError(
            f"WARDCAST_HOST {settings.host} is reachable from other machines, which needs configured credentials and "
            f"TLS. Also set {' and '.join(lacking)}, or use 127.0.0.1 behind a proxy."
        )


def _address(host: str, name: str = "HOST") -> str:
    host = {"localhost": "127.0.0.1"}.get(host, host)
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ConfigError(
            f"{PREFIX}{name} must be an IP address, for example 127.0.0.1 or 0.0.0.0."
        ) from None


def _number(read: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = read.get(name, str(default))
    if not re.fullmatch(r"\d{1,12}", text) or not low <= int(text) <= high:
        raise ConfigError(f"{PREFIX}{name} must be a whole number from {low:,} to {high:,}.")
    return int(text)


def _list(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def _clock_times(text: str, name: str) -> tuple[str, ...]:
    times = _list(text)
    if not all(re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", t) for t in times):
        raise ConfigError(
            f"{PREFIX}{name} must be clock times, with commas between, for example 08:00,16:00."
        )
    return tuple(sorted(set(times)))


def _public_url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ConfigError(
            "WARDCAST_PUBLIC_URL must be the address that callers use, for example https://risk.example.org."
        )
    return text.rstrip("/")


def _path(read: Mapping[str, str], name: str) -> Path | None:
    return Path(read[name]).expanduser().absolute() if name in read else None


def _there(url: str) -> None:
    """Refuse to look at a store of a file that does not exist."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise ConfigError(
            f"No store at {url.removeprefix('sqlite:///')}: no service has run here. Name its folder with "
            "WARDCAST_VAR, or its store with WARDCAST_STORE_URL."
        )


def _store_key(path: Path, url: str) -> str:
    """The key of an encrypted store; made once, beside a store that does not exist yet."""
    if not url.startswith("sqlite:///"):
        return ""
    database = Path(url.removeprefix("sqlite:///"))
    if database.exists() and not path.exists():
        raise ConfigError(
            f"The store {database} exists but its key {path} does not. Restore the key from its backup; "
            "without it the store cannot be read."
        )
    key = _secret(path, secrets.token_hex(32))
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ConfigError(f"{path} must hold a 256-bit key as 64 hex digits.")
    return key


def _secret(path: Path, fresh: str) -> str:
    """Read a secret file, or write it with ``fresh`` content, readable by its owner only."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent)  # 0600 from the start
        try:
            with os.fdopen(handle, "w") as file:
                file.write(fresh + "\n")
            os.link(temporary, path)  # fails where another process was first; then theirs counts
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds a secret and is readable by others. Run: chmod 600 {path}")
    content = path.read_text(encoding="utf-8").strip()
    if not content:
        raise ConfigError(
            f"{path} is empty. Delete it to have a new one made, or restore it from its backup."
        )
    return content
