"""Reading the log of a quarter, and what became of its patients, for :mod:`serving.monitoring.performance`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from serving.clock import to_us
from serving.monitoring import outcomes, performance
from serving.monitoring.findings import Finding
from serving.monitoring.logged import scored_parts
from serving.store import facts, scores

if TYPE_CHECKING:
    from models.bundle import Bundle
    from serving.store.store import Store

AGES: Final = (18, 40, 65, 80)
"""Lower ends of the age groups, years."""


def follow_up(
    store: Store,
    bundle: Bundle,
    until: datetime,
    labels: Path | None,
    timezone: str,
    known: tuple[datetime, pd.DataFrame] | None = None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Judge the bundle's matured predictions of this quarter and the one before.

    Parameters
    ----------
    labels : Path or None
        Outcomes (:func:`serving.monitoring.outcomes.from_file`); without, the store's events tell them.
    known : (instant, attempts) or None
        What was read of the log already, up to ``until``, and from when on; read anew where it does not reach back.

    Returns
    -------
    findings, performance
        ``performance`` has what :func:`performance.measure` and :func:`performance.check` return, and ``since``,
        ``until``, ``outcomes``, ``estimate`` and ``notes``; only ``notes`` and ``estimate`` where no outcome is known.

    Raises
    ------
    DataError
        The file of outcomes cannot be used.
    """
    rule = outcomes.Rule.of(bundle.spec)
    with store.read() as connection:
        first = scores.first(connection, bundle.model_id)
        began = until if first is None else datetime.fromtimestamp(first / 1e6, UTC)
        since = performance.window(until, began)
        parts = (
            scored_parts(known[1], since)
            if known is not None and known[0] <= since
            else scores.read(connection, to_us(since), to_us(until), bundle.model_id)
        )
        hours = performance.Hours.of(parts)
    guess = performance.estimate(hours.probability, float(bundle.thresholds["alert"]))
    unsaid = {"estimate": guess, "notes": [performance.CENSORED]}
    if not len(hours):
        return [], unsaid
    told = _told(store, hours, labels, rule, to_us(until), timezone)
    if told is None:
        why = "the store holds no antibiotics, or no cultures, of these patients, from which sepsis is told."
        return [performance.unknown(why)], unsaid
    judged = performance.judge(hours, told, rule, until)
    if not judged.stays:
        why = (
            f"no hour of the {len(hours.names):,} stays since {since:%Y-%m-%d} has matured, or none is in "
            f"{told.source}."
        )
        return [performance.unknown(why)], unsaid
    table = performance.measure(judged, _groups(store, judged, hours))
    found, advice = performance.check(judged, table, until)
    advice |= {k: advice[k].isoformat() for k in ("since", "until")}
    about = {"since": since.isoformat(), "until": until.isoformat(), "outcomes": told.source}
    return found, unsaid | about | table | {"recalibration": advice}


def _told(
    store: Store,
    hours: performance.Hours,
    labels: Path | None,
    rule: outcomes.Rule,
    now: int,
    timezone: str,
) -> outcomes.Outcomes | None:
    if labels is not None:
        return outcomes.from_file(labels, timezone)
    return outcomes.from_store(store, hours.names[-performance.MOST_STAYS :], now, rule.definition)


def _groups(store: Store, judged: performance.Judged, hours: performance.Hours) -> dict[str, np.ndarray]:
    """Unit, sex and age of each hour's patient, as text; "" where nobody has said it."""
    with store.read() as connection:
        known = facts.latest(connection, judged.names)
    people = [known.get(name, {}) for name in judged.names]
    sex = np.array([str(person.get("sex") or "") for person in people], dtype=object)
    age = np.array([_age(person.get("age_years")) for person in people], dtype=object)
    units = np.array(hours.units, dtype=object)[judged.unit]
    return {"unit": units, "sex": sex[judged.stay], "age": age[judged.stay]}


def _age(years: float | None) -> str:
    if years is None or pd.isna(years) or years < AGES[0]:
        return ""
    k = int(np.searchsorted(AGES, years, side="right")) - 1
    return f"{AGES[k]} and older" if k == len(AGES) - 1 else f"{AGES[k]} to {AGES[k + 1] - 1}"
