"""The paging policy of a model: found among a few settings, on the patients it is given and no others.

A spec's ``[alerts]`` says where the threshold comes from. ``budget``: the lowest at which pages keep to so many per 100
patient-days; of the settings, the one whose pages are most often followed by onset within a day. ``net_benefit``: the
settings and threshold of highest net benefit, where a ward would accept so many false pages for one septic stay paged
within the day before onset. Each of ``snooze_h``, ``reraise`` and ``release`` is one value, or a list to choose from.

A policy says when a stay is paged again, not which stays are: at one threshold that follows from the scores alone.
Tried on cross-validated scores of PhysioNet 2019 and left out, since they found no truer stays at 80 % sensitivity
(stay PPV 0.187 to 0.200, plain 0.199): smoothed log-odds, two or three scores above the threshold in a row, and scores
relative to the patient's own mean or lowest so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from features.clock import HOUR_US
from features.errors import SpecError
from models.alerting import Stays
from models.decision import AlertPolicy, pages, walk

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

SETTINGS: Final = ("snooze_h", "reraise", "release")
NEVER: Final = 1e9
"""A rise so large that it pages nobody again."""
PLAIN: Final = {"snooze_h": 0.0, "reraise": NEVER, "release": 1.0}
"""No policy: a page whenever the probability comes to the threshold from below."""
THRESHOLDS: Final = 30
"""Thresholds tried for net benefit, evenly by how many scores lie above them."""
DAY_H: Final = 24.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy with the figure that it was chosen by, on the rows it was chosen on."""

    policy: AlertPolicy
    worth: float


def choose(stays: Stays, probability: Floats, alerts: Mapping[str, Any]) -> tuple[AlertPolicy, list[Choice]]:
    """The policy of a spec's ``[alerts]``, and every setting that was tried, each at its own best threshold.

    Parameters
    ----------
    stays : Stays
        Of patients that may be looked at: training patients.
    probability : shape (n,), NaN where unscorable

    Raises
    ------
    SpecError
        ``threshold_from`` is unknown, or what it needs is not said.
    """
    find = _finder(alerts)
    tried = [find(stays, probability, settings) for settings in settings_of(alerts)]
    return max(tried, key=lambda choice: choice.worth).policy, tried


def settings_of(alerts: Mapping[str, Any]) -> list[dict[str, float]]:
    """Every combination of the settings of a spec; the first values first."""
    lists = [alerts[k] if isinstance(alerts[k], list) else [alerts[k]] for k in SETTINGS]
    return [dict(zip(SETTINGS, map(float, values), strict=True)) for values in product(*lists)]


def _finder(alerts: Mapping[str, Any]) -> Callable[[Stays, Floats, dict[str, float]], Choice]:
    origin = alerts.get("threshold_from", "budget")
    needs = {"budget": "pages_per_100_patient_days", "net_benefit": "false_pages_per_true"}.get(origin)
    if needs is None or needs not in alerts:
        raise SpecError(
            f"[alerts] threshold_from is {origin!r}. Write 'budget' with pages_per_100_patient_days, or 'net_benefit' "
            "with false_pages_per_true."
        )
    if origin == "budget":
        return lambda stays, p, settings: within_budget(stays, p, settings, float(alerts[needs]))
    return lambda stays, p, settings: _most_beneficial(stays, p, settings, float(alerts[needs]))


def within_budget(stays: Stays, probability: Floats, settings: Mapping[str, float], budget: float) -> Choice:
    """The lowest threshold that keeps to so many pages per 100 patient-days; worth the PPV of its pages."""
    policy = _policy(1.0, settings)
    threshold = stays.threshold_within(
        probability, lambda t: pages_of(stays, probability, replace(policy, threshold=_possible(t))), budget
    )
    found = replace(policy, threshold=_possible(threshold))
    page = pages_of(stays, probability, found) & stays.counted
    return Choice(found, float((stays.ahead[page] <= DAY_H).mean()) if page.any() else 0.0)


def _most_beneficial(
    stays: Stays, probability: Floats, settings: Mapping[str, float], exchange: float
) -> Choice:
    known = probability[stays.counted & ~np.isnan(probability)]
    if not len(known):
        return Choice(_policy(1.0, settings), 0.0)
    places = 1 - np.geomspace(1e-4, 0.5, THRESHOLDS)
    policies = [_policy(_possible(float(t)), settings) for t in np.unique(np.quantile(known, places))]
    worths = [net_benefit(stays, pages_of(stays, probability, policy), exchange) for policy in policies]
    best = int(np.argmax(worths))
    return Choice(policies[best], worths[best])


def net_benefit(stays: Stays, page: Bools, exchange: float) -> float:
    """Septic stays paged within a day before onset, less false pages at ``exchange`` for one, per 100 patient-days."""
    page = page & stays.counted
    soon = stays.ahead <= DAY_H
    caught = len(np.unique(stays.patient[page & soon]))
    return 2400 * (caught - float((page & ~soon).sum()) / exchange) / max(float(stays.counted.sum()), 1.0)


def page_rows(patient: Ints, hour: Floats, probability: Floats, policy: AlertPolicy) -> Bools:
    """Rows that page, shape (n,), of rows timed in hours since ICU admission."""
    return pages(patient, _micros(hour), probability, policy)


def pages_of(stays: Stays, probability: Floats, policy: AlertPolicy) -> Bools:
    """The same for whole stays."""
    return page_rows(stays.patient, stays.hour, probability, policy)


def _micros(hour: Floats) -> Ints:
    return np.rint(hour * HOUR_US).astype(np.int64)


def _policy(threshold: float, settings: Mapping[str, float]) -> AlertPolicy:
    return AlertPolicy(threshold, *(settings[k] for k in SETTINGS))


def _possible(threshold: float) -> float:
    return min(max(threshold, 1e-9), 1.0)


# ------------------------------------------------------------ what it is worth, on patients it was not chosen on


def rivals(
    stays: Stays, probability: Floats, alerts: Mapping[str, Any], chosen: AlertPolicy
) -> dict[str, AlertPolicy]:
    """What a policy is compared with, found on the same patients: the plain threshold at the same rate of pages, and
    both at the threshold that reaches 80 % of septic stays."""
    rate = stays.paged(pages_of(stays, probability, chosen)).rate
    plain = within_budget(stays, probability, PLAIN, alerts.get("pages_per_100_patient_days", rate)).policy
    reaching = _possible(stays.threshold_for(probability, 0.8))
    return {
        "policy": chosen,
        "plain threshold": plain,
        "policy, 80 % of septic stays": replace(chosen, threshold=reaching),
        "plain threshold, 80 % of septic stays": replace(plain, threshold=reaching),
    }


class Trial:
    """Pages of policies on patients they were not chosen on, gathered fold by fold."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._said: dict[str, tuple[Bools, Bools]] = {}

    def take(
        self, fold: Bools, stays: Stays, probability: Floats, policies: Mapping[str, AlertPolicy]
    ) -> None:
        """Walk the patients of one fold; ``stays`` and ``probability`` are of its rows only, in order."""
        for name, policy in policies.items():
            empty = (np.zeros(self._rows, dtype=np.bool_), np.zeros(self._rows, dtype=np.bool_))
            page, standing = self._said.setdefault(name, empty)
            page[fold], standing[fold] = walk(stays.patient, _micros(stays.hour), probability, policy)

    def table(self, stays: Stays) -> Iterator[dict[str, Any]]:
        """One row a policy: what a ward would see, and in how many septic stays an alert stood in the last 12 h."""
        for name, (page, standing) in self._said.items():
            yield {"policy": name} | stays.paged(page, standing).table()
