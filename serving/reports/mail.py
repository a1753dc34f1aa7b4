"""The bed report by e-mail: to the people at the huddle, when the site has named a mail server.

The message carries counts only, no patient. The connection is encrypted unless the server is on this machine.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import localtime
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from features.errors import ConfigError, WardcastError
from models.beds import HOSPITAL
from serving.reports.forecast import BedForecast
from serving.reports.formats import format_of
from serving.reports.render import moment

TIMEOUT_S: Final = 30
ATTACHED: Final = ("pdf", "xlsx")
ADDRESS: Final = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+")


class MailError(WardcastError):
    """The mail server did not take the report."""


@dataclass(frozen=True)
class Mailbox:
    """Where reports are posted.

    Attributes
    ----------
    security : "tls", "starttls" or "none"
        "none" only to this machine.
    """

    host: str
    port: int
    security: Literal["tls", "starttls", "none"]
    sender: str
    recipients: tuple[str, ...]
    user: str = ""
    password_file: Path | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, url: str, sender: str, recipients: Sequence[str], password_file: Path | None
    ) -> Mailbox | None:
        """From ``smtps://user@host:465`` (TLS) or ``smtp://user@host:587`` (STARTTLS); None where no server is named.

        Raises
        ------
        ConfigError
            The address, the sender or a recipient cannot be used. Names the variable.
        """
        if not url:
            return None
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or port == -1 or parts.password:
            raise ConfigError(
                "WARDCAST_SMTP must be smtps://user@host:465 or smtp://user@host:587, without a password: that is read "
                "from the file WARDCAST_SMTP_PASSWORD_FILE."
            )
        if not ADDRESS.fullmatch(sender) or not recipients or not all(map(ADDRESS.fullmatch, recipients)):
            raise ConfigError(
                "WARDCAST_MAIL_FROM must be an e-mail address and WARDCAST_MAIL_TO one or more, with commas between."
            )
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        plain: Literal["starttls", "none"] = "none" if here else "starttls"
        security: Literal["tls", "starttls", "none"] = "tls" if parts.scheme == "smtps" else plain
        default = 465 if security == "tls" else 25 if here else 587
        user = unquote(parts.username or "")
        return cls(parts.hostname, port or default, security, sender, tuple(recipients), user, password_file)


def post(box: Mailbox, forecast: BedForecast, site: str = "") -> None:
    """Send the report: what it says in words, the PDF and the spreadsheet attached.

    Raises
    ------
    MailError
        The server could not be reached or refused; says the stage and the kind, never the message.
    """
    letter = letter_of(box, forecast, site)
    try:
        with _connection(box) as server:
            if box.user:
                server.login(box.user, _password(box))
            refused = server.send_message(letter)
    except (OSError, smtplib.SMTPException) as error:
        code = getattr(error, "smtp_code", None)
        raise MailError(
            f"The mail server {box.host}:{box.port} did not take the report: {type(error).__name__}"
            f"{f' {code}' if code else ''}. Check WARDCAST_SMTP, the password file and the recipients."
        ) from None
    if refused:
        raise MailError(
            f"The mail server refused {len(refused)} of {len(box.recipients)} recipients. Check WARDCAST_MAIL_TO."
        )


def letter_of(box: Mailbox, forecast: BedForecast, site: str = "") -> EmailMessage:
    """The message, ready to be sent."""
    letter = EmailMessage()
    local = moment(forecast.at, forecast.timezone)
    warn = "DEGRADED: " if forecast.freshness.silent else ""
    where = f" {site}" if site and site != "site" else ""
    letter["Subject"] = f"{warn}Beds{where}, {local}".replace("\n", " ").replace("\r", " ")
    letter["From"], letter["To"] = box.sender, ", ".join(box.recipients)
    letter["Date"] = localtime()
    letter.set_content(in_plain_words(forecast))
    for name in ATTACHED:
        form = format_of(name)
        main, sub = form.media.split("/", 1)
        letter.add_attachment(
            form.write(forecast, site), maintype=main, subtype=sub, filename=f"{stem(forecast)}.{name}"
        )
    return letter


def in_plain_words(forecast: BedForecast) -> str:
    """The hospital's line of every window, for whoever opens no attachment."""
    lines = [f"Degraded: {said}" for said in forecast.freshness.silent]
    for window in forecast.windows:
        cell = forecast.cell(HOSPITAL, window.key)
        lines.append(
            f"{window.label.capitalize()}: {cell.needed_mean:.0f} beds needed, {forecast.words(HOSPITAL, window.key)}; "
            f"{cell.parts['discharges']:.0f} discharges expected."
        )
    return "\n".join([*lines, *forecast.freshness.notes, "", f"Model {forecast.model_id}.", ""])


def stem(forecast: BedForecast) -> str:
    """The file name of a report, without suffix: the local time it was made for."""
    return f"beds-{forecast.at.tz_convert(forecast.timezone):%Y-%m-%d-%H%M}"


def _connection(box: Mailbox) -> smtplib.SMTP:
    trust = ssl.create_default_context()
    here = socket.gethostname()  # else smtplib asks the name service who we are
    if box.security == "tls":
        return smtplib.SMTP_SSL(box.host, box.port, here, timeout=TIMEOUT_S, context=trust)
    server = smtplib.SMTP(box.host, box.port, here, timeout=TIMEOUT_S)
    if box.security == "starttls":
        server.starttls(context=trust)
    return server


def _password(box: Mailbox) -> str:
    if box.password_file is None:
        raise MailError("The mail server wants a password. Name its file in WARDCAST_SMTP_PASSWORD_FILE.")
    try:
        if box.password_file.stat().st_mode & 0o077:
            path = box.password_file
            raise MailError(f"{path} holds a password and is readable by others. Run: chmod 600 {path}")
        return box.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MailError(f"The password file of the mail server cannot be read: {error.strerror}.") from None
