"""What people did with alerts and cards: seen or not, how soon, followed or overridden, and whether that has changed.

Alerts nobody answers are silent too. A rise in overrides has found more broken rules than any look at the rules
(Wright et al., JAMIA 2016;23:1068).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import numpy as np
import pandas as pd
from sqlalchemy import Connection, func, select

from serving.clock import to_us
from serving.monitoring.findings import WATCH, Finding
from serving.monitoring.statistics import proportion_probability
from serving.store import cds
from serving.store.facts import received_range
from serving.store.tables import alerts, feedback, predictions

FEWEST: Final = 20
CHANGED: Final = 1e-3
DIFFERENCE: Final = 0.15
LOW_ANSWER, HIGH_OVERRIDE = 0.2, 0.8
SEEN_US: Final = 3600 * 1_000_000
"""An alert younger than this may still be answered, and is not counted."""


def answers(connection: Connection, since: datetime, until: datetime) -> dict[str, Any]:
    """Counts and shares of a period, of alerts raised, and cards given, in it. Nobody's name or comment is read.

    Returns
    -------
    dict with ``alerts``, ``acknowledged``, ``acknowledged_share``, ``minutes_to_answer`` (median), ``answers`` by what
    was said, ``cards``, ``card_feedback``, ``overridden``, ``override_share``, ``override_reasons`` by code, and
    ``units``: alerts and share acknowledged by unit, of units with at least twenty.
    """
    a, p, f = alerts.c, predictions.c, feedback.c
    opens, closes = to_us(since), to_us(until)
    query = select(a.raised_time, a.acknowledged_time, p.unit)
    query = query.join(predictions, p.prediction_id == a.prediction_id, isouter=True)
    rows = connection.execute(query.where(received_range(opens, closes - SEEN_US, a.raised_time))).all()
    table = pd.DataFrame([tuple(r) for r in rows], columns=["raised", "seen", "unit"])
    seen = table["seen"].notna()
    waited = (table["seen"] - table["raised"])[seen].astype("float64") / 60e6
    said = select(f.outcome, func.count()).where(received_range(opens, closes, f.given_time))
    told = cds.counts(connection, opens, closes)
    given = sum(row["count"] for row in told["cards"] if row["status"] == "scored")
    overridden = [row for row in told["feedback"] if row["outcome"] == "overridden"]
    answered = sum(row["count"] for row in told["feedback"])
    against = sum(row["count"] for row in overridden)
    return {
        "alerts": len(table),
        "acknowledged": int(seen.sum()),
        "acknowledged_share": _share(int(seen.sum()), len(table)),
        "minutes_to_answer": float(np.median(waited)) if len(waited) else None,
        "answers": {str(k): int(n) for k, n in connection.execute(said.group_by(f.outcome))},
        "cards": given,
        "card_feedback": answered,
        "overridden": against,
        "override_share": _share(against, answered),
        "override_reasons": {str(row["reason_code"] or "none given"): row["count"] for row in overridden},
        "units": _by_unit(table.assign(seen=seen)),
    }


def _by_unit(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    by_unit = table[table["unit"].notna()].groupby("unit")["seen"].agg(["size", "mean"])
    rows = by_unit[by_unit["size"] >= FEWEST]
    return {
        str(unit): {"alerts": int(n), "acknowledged_share": float(share)}
        for unit, n, share in zip(rows.index, rows["size"], rows["mean"], strict=True)
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def check(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Finding]:
    """Fewer alerts answered, or more cards overridden, than in the period before, or than anybody should bear."""
    answered = (now["acknowledged_share"], now["alerts"], before["acknowledged_share"], before["alerts"])
    against = (now["override_share"], now["card_feedback"], before["override_share"], before["card_feedback"])
    found = []
    if _worse(*answered, sign=-1, bound=LOW_ANSWER):
        found.append(
            Finding(
                kind="alerts_unanswered",
                severity=WATCH,
                what=f"{now['acknowledged_share']:.0%} of {now['alerts']:,} alerts were acknowledged{_was(answered)}.",
                where=_worst_units(now),
                certainty=f"{now['alerts']:,} alerts, each at least an hour old",
                action="Ask the wards whether alerts reach them, then whether they still help: people tire of many.",
            )
        )
    if _worse(*against, sign=1, bound=HIGH_OVERRIDE):
        reasons = sorted(now["override_reasons"].items(), key=lambda item: -item[1])[:3]
        found.append(
            Finding(
                kind="cards_overridden",
                severity=WATCH,
                what=f"{now['override_share']:.0%} of {now['card_feedback']:,} answered cards were overridden"
                f"{_was(against)}.",
                where="CDS cards",
                certainty="reasons given: " + ", ".join(f"{code} ({n:,})" for code, n in reasons),
                action="Read the reasons: a rise often means that an input or a rule has broken, not that people have.",
            )
        )
    return found


def _worse(share: float | None, n: int, usual: float | None, m: int, *, sign: int, bound: float) -> bool:
    if share is None or n < FEWEST:
        return False
    if sign * (share - bound) > 0 and n >= 2 * FEWEST:
        return True
    if usual is None or m < FEWEST or sign * (share - usual) < DIFFERENCE:
        return False
    return float(proportion_probability(share, n, usual, m)) < CHANGED


def _was(figures: tuple[float | None, int, float | None, int]) -> str:
    _, _, usual, m = figures
    return f", {usual:.0%} in the period before" if usual is not None and m >= FEWEST else ""


def _worst_units(now: Mapping[str, Any]) -> str:
    share = now["acknowledged_share"]
    low = [unit for unit, row in now["units"].items() if row["acknowledged_share"] < share - 0.1]
    return f"unit{'s' if len(low) > 1 else ''} {', '.join(low[:4])}" if low else "all units"
