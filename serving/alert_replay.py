"""``wardcast alerts replay``: walk the stored history through the alert rules again.

With the rules that stand, the alerts must be those that were raised: the log says what the policy saw. With others, it
says what a ward would have been told, before the rules are changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select, union

from features.errors import ConfigError
from models.decision import AlertPolicy, AlertState
from models.scope import SCORED
from serving.alerting import Alerting
from serving.rounds import STORED
from serving.scoring import Scorer
from serving.settings import Settings
from serving.store import facts, log
from serving.store.store import Store
from serving.store.tables import encounters, events, predictions

DAY_US: Final = 24 * 3_600_000_000
Raised = tuple[str, int, str]
"""Encounter, when (microseconds) and why (``threshold`` or ``risen``)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was raised, and what these rules raise.

    Attributes
    ----------
    raised, replayed : sets of (encounter, microseconds, reason)
    policy : AlertPolicy
    patient_days : float
        Between the first and the last score of each stay.
    """

    raised: frozenset[Raised]
    replayed: frozenset[Raised]
    policy: AlertPolicy
    patient_days: float

    @property
    def alike(self) -> bool:
        """Whether the same alerts come out."""
        return self.raised == self.replayed

    def summary(self) -> str:
        """Counts, for the console; no identities."""
        p = self.policy
        rules = (
            f"Rules: threshold {p.threshold:g}, {p.snooze_h:g} quiet hours, re-raised at {p.reraise:g} times the risk, "
            f"released below {p.release:g} of the threshold."
        )
        same = len(self.raised & self.replayed)
        counts = (
            f"Raised then: {self._rate(self.raised)}.\nRaised by these rules: {self._rate(self.replayed)}.\n"
            f"{same:,} alike, {len(self.raised) - same:,} only then, {len(self.replayed) - same:,} only by these rules."
        )
        return f"{rules}\n{counts}"

    def _rate(self, alerts: frozenset[Raised]) -> str:
        per = f"{100 * len(alerts) / self.patient_days:.1f}" if self.patient_days else "no"
        stays = len({who for who, _, _ in alerts})
        return f"{len(alerts):,} alerts of {stays:,} stays, {per} per 100 patient-days"


def replay(settings: Settings, rules: Path | None = None) -> Replayed:
    """Walk every stored score of the served model through the rules.

    Parameters
    ----------
    rules : Path, optional
        A file as ``WARDCAST_ALERTS_FILE``; default the one that stands. Its receivers are told nothing.

    Raises
    ------
    ConfigError, DataError, SpecError
        The rules, the store or the model cannot be used, or the model has scored nothing.
    """
    scorer = Scorer.load(settings.sepsis_model, settings.timezone)
    chosen = settings if rules is None else replace(settings, alerts_file=rules.absolute())
    policy = Alerting.of(chosen).policy(scorer.bundle)
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        with store.read() as connection:
            return _replay(connection, scorer, policy)
    finally:
        store.close()


def _replay(connection: Connection, scorer: Scorer, policy: AlertPolicy) -> Replayed:
    model_id = scorer.bundle.model_id
    logged = _scores(connection, model_id)
    if not logged:
        raise ConfigError(f"Model {model_id} has scored nobody in this store, so there is nothing to replay.")
    intakes = _intakes(connection)
    found: set[Raised] = set()
    for some in facts.chunks(list(logged)):
        known = _versions(connection, some)
        for who in some:
            resets = _resets(known.get(who, []), intakes, scorer)
            found |= {(who, when, why) for when, why in _walk(logged[who], resets, policy)}
    ours = {row["prediction_id"] for rows in logged.values() for row in rows}
    stored = (
        dict(zip(log.ALERT_COLUMNS, row, strict=True)) for row in log.read_alerts(connection, None, None)
    )
    raised = {
        (a["encounter_id"], a["raised_time"], a["reason"]) for a in stored if a["prediction_id"] in ours
    }
    spans = (rows[-1]["prediction_time"] - rows[0]["prediction_time"] for rows in logged.values())
    return Replayed(frozenset(raised), frozenset(found), policy, sum(spans) / DAY_US)


def _scores(connection: Connection, model_id: str) -> dict[str, list[Mapping[str, Any]]]:
    """The scores of the stored road by encounter, in the order in which the policy saw them."""
    p = predictions.c
    query = select(p.encounter_id, p.prediction_id, p.prediction_time, p.created_time, p.probability)
    query = query.where(p.road == STORED, p.model_id == model_id, p.status == SCORED).order_by(p.seq)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["encounter_id"], []).append(dict(row))
    return found


def _intakes(connection: Connection) -> npt.NDArray[np.int64]:
    """Every moment at which something came in: then, too, it is seen who has left."""
    both = union(select(events.c.received_time), select(encounters.c.received_time))
    return np.sort(np.fromiter(connection.execute(both).scalars(), dtype=np.int64))


def _versions(connection: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    query = select(encounters).where(encounters.c.encounter_id.in_(ids)).order_by(encounters.c.seq)
    for row in connection.execute(query).mappings():
        found.setdefault(row["encounter_id"], []).append(dict(row))
    return found


def _resets(versions: Sequence[dict[str, Any]], intakes: npt.NDArray[np.int64], scorer: Scorer) -> list[int]:
    """The moments at which it was seen that a patient had left, or was none of the model's any more."""
    found = []
    for k, (about, inside) in enumerate(zip(versions, scorer.in_scope(versions), strict=True)):
        begins = about["received_time"]
        ends = versions[k + 1]["received_time"] if k + 1 < len(versions) else np.iinfo(np.int64).max
        gone = begins if not inside else about["discharge_time"]
        if gone is None:
            continue
        place = int(np.searchsorted(intakes, max(gone, begins)))
        if place < len(intakes) and (intakes[place] < ends or intakes[place] == begins):
            found.append(int(intakes[place]))
    return found


def _walk(
    scores: Sequence[Mapping[str, Any]], resets: Sequence[int], policy: AlertPolicy
) -> Iterator[tuple[int, str]]:
    state, seen, left = AlertState(), -1, list(resets)
    for row in scores:
        while left and left[0] <= row["created_time"]:
            left.pop(0)
            state, seen = AlertState(), -1
        if row["prediction_time"] < seen:
            continue
        before, seen = state, row["prediction_time"]
        state, decision = policy.step(before, row["probability"], seen)
        if decision.page:
            yield seen, "risen" if before.active and before.paged else "threshold"
