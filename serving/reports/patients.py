"""``wardcast forecast patients``: P(admission) of everybody undecided in the emergency department, with its reasons.

For clinicians who ask why; the bed report itself names no patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pandas as pd

from features import census
from features.clock import UTC_US
from features.sources.visits import known_at, visit_events
from models.beds import CALENDAR, BedModel, admission_matrix, admission_probabilities
from models.bundle import Bundle
from serving.clock import iso
from serving.reasons import latest, reasons
from serving.reports.beds import parse_time, read_known
from serving.settings import Settings

STRONGEST: Final = 6


def patients_at(settings: Settings, at: str = "now", visits: Path | None = None) -> dict[str, Any]:
    """Everybody undecided at a moment, likeliest to be admitted first.

    Parameters
    ----------
    at : str
        ``now``, or ISO 8601; without an offset in the site's time zone.
    visits : Path, optional
        A file of visits instead of the service's store.
    """
    bundle = Bundle.load(settings.admissions_model)
    table, events, last = read_known(settings, at, bundle, visits)
    now = last if at == "now" else parse_time(at, settings.timezone)
    found = explained(bundle, table, events, now, settings.timezone)
    return {"at": iso(now.value // 1000), "model": bundle.model_id, "patients": found}


def explained(
    bundle: Bundle, visits: pd.DataFrame, events: pd.DataFrame, now: pd.Timestamp, timezone: str
) -> list[dict[str, Any]]:
    """P(admission), P(specialty given admission) and the strongest reasons of each undecided patient.

    Reasons are exact TreeSHAP in log-odds before calibration, summed by clinical concept; those of hour and weekday are
    given as ``calendar``. With ``base`` and ``other`` they add up to ``raw``.
    """
    names = BedModel.of(bundle).specialties
    there = census.undecided(known_at(visits, now), now)
    if there.empty:
        return []
    mine = pd.concat([events[events["encounter_id"].isin(there["encounter_id"])], visit_events(there)])
    flat = bundle.spec.features.flatten(mine)
    rows = there[["encounter_id"]].assign(prediction_time=pd.Series(now, index=there.index, dtype=UTC_US))
    chance = admission_probabilities(bundle, flat, rows, timezone, len(names))
    matrix = admission_matrix(bundle.spec.features, flat, rows, timezone)
    shap, raw = bundle.contributions(matrix), bundle.raw(matrix)
    place = flat.encounter_ids.get_indexer(pd.Index(there["encounter_id"]))
    found = []
    for i, encounter in enumerate(there["encounter_id"]):
        own = [*shap[i, : -1 - len(CALENDAR)], shap[i, -1]]
        measured = latest(flat, int(place[i]), now.value // 1000)
        told = reasons(
            bundle.spec.features, matrix[i, : -len(CALENDAR)], pd.Series(own).to_numpy("float64"), measured,
            now.value // 1000, timezone,
        )  # fmt: skip
        calendar = float(shap[i, -1 - len(CALENDAR) : -1].sum())
        found.append(
            {
                "encounter_id": encounter,
                "p_admission": float(chance["p_admission"].iloc[i]),
                "specialty_if_admitted": {
                    name: float(chance[f"p_{k}"].iloc[i]) for k, name in enumerate(names)
                },
                "hours_since_arrival": (now - there["arrival_time"].iloc[i]) / pd.Timedelta(hours=1),
                "raw": float(raw[i]),
                "base": float(shap[i, -1]),
                "calendar": calendar,
                "reasons": [r.answer() for r in told[:STRONGEST]],
                "other": float(sum(r.contribution for r in told[STRONGEST:])),
            }
        )
    return sorted(found, key=lambda p: -p["p_admission"])
