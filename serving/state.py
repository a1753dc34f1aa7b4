"""What every request stands on: settings, store, models, clock, templates. One object, made once."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment
from sqlalchemy import Connection, insert, select, update

from features.errors import SpecError
from models.bundle import Bundle
from serving.alerting import Alerting
from serving.answers import Refusal, not_signed_in
from serving.clock import from_us, to_us
from serving.context import request_id
from serving.metrics import Metrics
from serving.notices import Notices
from serving.render import environment
from serving.scoring import Scorer
from serving.security.clients import CdsClients, spend
from serving.security.identity import Caller, Credentials
from serving.settings import Settings
from serving.store import audit, log
from serving.store.engine import CACHE_KIB
from serving.store.messages import MessageLog
from serving.store.store import Store
from serving.store.tables import replay_clock

logger = logging.getLogger("wardcast")


class Wardcast:
    """The service's state, found at ``request.app.state.wardcast``.

    Attributes
    ----------
    settings : Settings
    store : Store
    messages : MessageLog or None
    bundles : dict of product to Bundle
        What could be loaded; ``problems`` has the reason code of what could not.
    templates : jinja2.Environment
        With ``base.html``.
    """

    def __init__(self, settings: Settings, cache_kib: int = CACHE_KIB) -> None:
        self.settings = settings
        # What can be refused is read before the store is opened, so that a refusal leaves no store open.
        self.credentials = Credentials.of(settings)
        self.cds = CdsClients.of(settings)
        self.alerting = Alerting.of(settings)
        self.store = Store.open(settings.store_url, settings.store_key or None, settings.site, cache_kib)
        self.messages = self._message_log()
        self.metrics = Metrics()
        self.notices = Notices(settings.var / "monitor")
        self.templates: Environment = environment(settings.timezone)
        self.bundles: dict[str, Bundle] = {}
        self.problems: dict[str, str] = {}
        self._scorer: Scorer | None = None
        self._load_sepsis()

    def _message_log(self) -> MessageLog | None:
        """The log of HL7 v2 messages, to look at; None where no port takes any."""
        if self.settings.mllp_port is None:
            return None
        return MessageLog.open(self.settings.store_url, self.settings.store_key or None)

    def _load_sepsis(self) -> None:
        try:
            self._scorer = Scorer.load(self.settings.sepsis_model, self.settings.timezone)
        except SpecError as error:
            self.problems["sepsis"] = error.code
            logger.error("model product=sepsis problem=%s detail=%s", self.problems["sepsis"], error)
            return
        self.bundles["sepsis"] = self._scorer.bundle
        kept = keep(self._scorer.bundle, self.settings.var / "models")
        with self.store.write() as connection:
            log.remember_model(connection, self._scorer.bundle.model_id, str(kept), wall_us())
        self.metrics.ready.set(1)

    @property
    def scorer(self) -> Scorer:
        """The sepsis scorer.

        Raises
        ------
        Refusal
            503 with the reason code where no model could be loaded.
        """
        if self._scorer is None:
            raise Refusal(
                503,
                self.problems["sepsis"],
                "No sepsis model is loaded, so nothing can be scored.",
                "Set WARDCAST_SEPSIS_MODEL to a bundle folder and restart; the log says what is wrong with this one.",
            )
        return self._scorer

    def now(self) -> datetime:
        """The service's clock: the wall's, or in replay the latest ``as_of`` that was sent."""
        return from_us(self.now_us())

    def now_us(self) -> int:
        """:meth:`now` in microseconds."""
        if self.settings.clock == "wall":
            return wall_us()
        with self.store.read() as connection:
            return self._replayed(connection)

    def _replayed(self, connection: Connection) -> int:
        found = connection.execute(select(replay_clock.c.now)).scalar()
        return wall_us() if found is None else int(found)

    def advance(self, connection: Connection, as_of: datetime | None) -> int:
        """Move the replay clock on, never back; returns now in microseconds.

        Raises
        ------
        Refusal
            422 where a clock was sent though the service goes by the wall's.
        """
        if as_of is None:
            return wall_us() if self.settings.clock == "wall" else self._replayed(connection)
        if self.settings.clock != "replay":
            raise Refusal(
                422,
                "as_of_not_accepted",
                "as_of is the sender's clock, and this service goes by its own.",
                "Leave as_of out, or run a replay service with WARDCAST_CLOCK=replay.",
            )
        found, wanted = connection.execute(select(replay_clock.c.now)).scalar(), to_us(as_of)
        if found is None:
            connection.execute(insert(replay_clock).values(id=1, now=wanted))
        elif wanted > found:
            connection.execute(update(replay_clock).values(now=wanted))
        return wanted if found is None else max(wanted, int(found))

    def audit(
        self,
        request: Request,
        action: str,
        encounters: Sequence[str],
        connection: Connection | None = None,
        outcome: str = "done",
    ) -> None:
        """Record who did what to whose data. In the deed's own transaction where there is one."""
        caller: Caller = request.state.caller
        act = audit.Act(caller.name, caller.role, action, outcome, encounters, request_id.get())
        if connection is None:
            with self.store.write() as own:
                self.audit(request, action, encounters, own, outcome)
            return
        if not spend(connection, caller, wall_us()):
            raise not_signed_in()
        audit.record(connection, act, wall_us())

    def render(self, template: str, **context: Any) -> str:
        """A page."""
        return self.templates.get_template(template).render(**context)


def keep(bundle: Bundle, folder: Path) -> Path:
    """A copy of a bundle that served, so that what it said can be repeated after another took its place."""
    kept = folder.absolute() / bundle.model_id
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            copy = shutil.copytree(bundle.folder, Path(aside) / "copy")
            with suppress(OSError):  # another worker was first
                copy.rename(kept)
    return kept


def wall_us() -> int:
    """Microseconds on the wall's clock."""
    return to_us(datetime.now(UTC))


def of(request: Request) -> Wardcast:
    """The state a request belongs to."""
    state: Wardcast = request.app.state.wardcast
    return state
