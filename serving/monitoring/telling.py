"""Alarms of the monitor, sent to the site's webhooks once each: again only after they had gone.

What was told is kept in ``var/monitor/told.json``, as a word a finding; there is nothing of a patient in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serving import webhooks
from serving.alerting import MONITOR_ALARM, Alerting
from serving.clock import to_us
from serving.monitoring.findings import ALARM, Finding
from serving.monitoring.result import write_atomically

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.store.store import Store

TOLD: Final = "told.json"


def tell(store: Store, settings: Settings, findings: Sequence[Finding], source: str) -> int:
    """Have receivers of ``monitor.alarm`` told of alarms that neither source had before; how many that are.

    Parameters
    ----------
    source : str
        ``run`` or ``feeds``: who found them. What one source no longer finds, it may tell again another time.
    """
    alarms = {_word(f): f for f in findings if f.severity == ALARM}
    path = settings.var / "monitor" / TOLD
    told = _told(path)
    fresh = [f for word, f in alarms.items() if not any(word in words for words in told.values())]
    receivers = Alerting.of(settings).receivers
    if fresh and receivers:
        link = f"{settings.known_as}/monitor#findings"
        with store.write() as connection:
            for f in fresh:
                news = f.to_dict()
                news = {
                    k: news[k] for k in ("kind", "what", "where", "since", "certainty", "action", "features")
                }
                news = {"site": settings.site, "finding": news.pop("kind"), **news}
                now = to_us(datetime.now(UTC))
                webhooks.put(connection, receivers, MONITOR_ALARM, {**news, "link": link}, now)
    write_atomically(path, json.dumps(told | {source: sorted(alarms)}) + "\n")
    return len(fresh)


def _word(finding: Finding) -> str:
    said = "\x1f".join((finding.kind, finding.where, *sorted(finding.features)))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _told(path: Path) -> dict[str, list[str]]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): list(map(str, v)) for k, v in told.items()} if isinstance(told, dict) else {}
