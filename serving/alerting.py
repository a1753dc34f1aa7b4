"""How a site wants to be alerted: ``WARDCAST_ALERTS_FILE``, a TOML file read once.

::

    [rules]                      # each as the model's own policy has it where left out
    snooze_h = 8                 # quiet hours after a page
    reraise = 2.0                # a rise by this factor pages again, quiet or not
    release = 0.7                # an episode ends below this share of the threshold

    [[webhook]]
    name = "rapid-response"
    url = "https://pager.example.org/wardcast"
    secret = "rapid-response.secret"     # a file beside this one, readable by its owner only; one secret a line
    kinds = ["alert.raised"]             # of raised, ended, acknowledged, which are all where left out;
                                         # "monitor.alarm" is for who looks after the service
    identify = false                     # true: with the encounter's identity, unit, probability and reasons
    keep_days = 30                       # the text of what was taken or given up is emptied then; 0: never

The threshold itself is the model's, from its decision record. Without the file the model's own policy stands and
nobody is told.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection

from features.errors import ConfigError
from models.bundle import Bundle
from models.decision import AlertPolicy
from serving import webhooks
from serving.clock import iso
from serving.security.clients import Url
from serving.settings import Settings

RAISED: Final = "alert.raised"
ENDED: Final = "alert.ended"
ACKNOWLEDGED: Final = "alert.acknowledged"
KINDS: Final = (RAISED, ENDED, ACKNOWLEDGED)
MONITOR_ALARM: Final = "monitor.alarm"
"""An alarm of the monitor: for those who look after the service, so only for receivers that ask for it."""
SHORTEST_SECRET: Final = 32


def _kind(kind: str) -> str:
    if kind not in (*KINDS, MONITOR_ALARM):
        raise ValueError(f"must be one of {', '.join((*KINDS, MONITOR_ALARM))}")
    return kind


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)


class _Rules(_Table):
    snooze_h: Annotated[float, Field(ge=0, le=24 * 28)] | None = None
    reraise: Annotated[float, Field(gt=1, le=1000)] | None = None
    release: Annotated[float, Field(gt=0, le=1)] | None = None


class _Webhook(_Table):
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    url: Url
    secret: str
    kinds: Annotated[list[Annotated[str, AfterValidator(_kind)]], Field(min_length=1)] = list(KINDS)
    identify: bool = False
    keep_days: Annotated[int, Field(ge=0, le=36_525)] = webhooks.KEEP_DAYS


class _File(_Table):
    rules: _Rules = _Rules()
    webhook: list[_Webhook] = []


@dataclass(frozen=True, slots=True)
class Alerting:
    """The site's rules, and whom to tell."""

    rules: Mapping[str, float]
    receivers: tuple[webhooks.Receiver, ...]
    link: str

    @classmethod
    def of(cls, settings: Settings) -> Alerting:
        """Read the file.

        Raises
        ------
        ConfigError
            It is missing or holds something that cannot be used; names the field and the remedy.
        """
        link = f"{settings.known_as}/alert?id="
        if settings.alerts_file is None:
            return cls({}, (), link)
        read = _read(settings.alerts_file)
        rules = {name: value for name, value in read.rules.model_dump().items() if value is not None}
        folder = settings.alerts_file.parent
        receivers = tuple(_receiver(hook, folder) for hook in read.webhook)
        if len({r.name for r in receivers}) < len(receivers):
            raise ConfigError(f"{settings.alerts_file}: two webhooks have one name. Give each its own.")
        return cls(rules, receivers, link)

    def policy(self, bundle: Bundle) -> AlertPolicy:
        """When a ward is paged: the policy the bundle was evaluated with, and what the site has changed of it.

        Raises
        ------
        SpecError
            They do not go together.
        """
        return AlertPolicy.from_dict({**bundle.alert_policy, **self.rules})

    def tell(
        self,
        connection: Connection,
        kind: str,
        alerts: Sequence[Mapping[str, Any]],
        now: int,
        more: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Have receivers told of alerts, in the transaction that changes them.

        Parameters
        ----------
        alerts : rows of the table of alerts
        more : by alert, what those may also know who may know whom it is about
        """
        for row in alerts if self.receivers else ():
            identity: dict[str, Any] = {
                "encounter_id": row["encounter_id"],
                "probability": row["probability"],
                "acknowledged_by": row.get("acknowledged_by"),
            }
            identity |= (more or {}).get(row["alert_id"], {})
            told = {
                "alert_id": row["alert_id"],
                "reason": row["reason"],
                "link": self.link + quote(row["alert_id"]),
            }
            times = ("raised_time", "ended_time", "acknowledged_time")
            told |= {name: iso(row.get(name)) for name in times}
            webhooks.put(connection, self.receivers, kind, told, now, identity)


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"WARDCAST_ALERTS_FILE {path} is not there.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"WARDCAST_ALERTS_FILE {path} is no TOML file.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {where}: {first['msg']}. See serving/alerting.py for the fields."
        ) from None


def _receiver(hook: _Webhook, folder: Path) -> webhooks.Receiver:
    path = folder / hook.secret
    if not path.is_file():
        raise ConfigError(f"The secret of webhook {hook.name} is not at {path}. Write it there, one a line.")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds a secret and is readable by others. Run: chmod 600 {path}")
    keys = tuple(
        line.strip().encode() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not keys or min(map(len, keys)) < SHORTEST_SECRET:
        raise ConfigError(
            f"{path}: a secret has at least {SHORTEST_SECRET} characters. Run: openssl rand -hex 32"
        )
    return webhooks.Receiver(hook.name, hook.url, frozenset(hook.kinds), keys, hook.identify, hook.keep_days)
