"""The monitor on real patients: faults injected into a replay of PhysioNet 2019, and Evidently on the same days.

Both hospitals' patients are laid out day by day (``_replay.py``). Three weeks teach the monitor what is usual; then
thirty clean days and as many broken ones are judged, each fault from 06:00 to midnight of a day of its own, by the
very calls that ``wardcast monitor`` makes: events are broken, cleaned, counted, made into features, scored and logged.
Found means an alarm or a warning of the right kind that names the right input. A clean day with either is false.

Limits were settled on the one half of the patients (``WARDCAST_BENCH_HALF=0``) and are judged on the other.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("DO_NOT_TRACK", "true")

import _replay as replay  # noqa: E402

from features.clock import HOUR_US, from_micros  # noqa: E402
from models.bundle import Bundle  # noqa: E402
from serving.monitoring.evidently_report import choose  # noqa: E402
from serving.monitoring.feeds import FeedLimits, expected, look  # noqa: E402
from serving.monitoring.findings import Finding, Reference  # noqa: E402
from serving.monitoring.intake import Intake, judge  # noqa: E402
from serving.monitoring.ledger import Ledger  # noqa: E402
from serving.monitoring.outcomes import Rule  # noqa: E402
from serving.monitoring.performance import LIKELY  # noqa: E402
from serving.monitoring.run import Logged, Watched, examine, unit_mix_ups  # noqa: E402
from serving.monitoring.sequential import evidence  # noqa: E402

TAUGHT: Final = 21
JUDGED: Final = 30
A_DAY: Final = 60
MOST_STAYS: Final = 2000
"""So long halved odds are waited for."""
SILENT: Final = (TAUGHT + 9, TAUGHT + 14, TAUGHT + 19)
"""Days on which feeds are stopped."""
LOUD: Final = ("alarm", "watch")
FEED: Final = ("feed_down", "feed_thin", "feed_silent", "missing_more")
MEANING: Final = ("values_disagree", "values_moved", "drift", "scale", "unit_wrong", "unit_mixed")
UNIT: Final = ("unit_wrong", "unit_mixed", "scale")
VITALS: Final = ("heart_rate", "map", "spo2", "respiratory_rate")
MINUTE_US: Final = HOUR_US // 60
LOOK_US: Final = 5 * MINUTE_US
"""The service looks at the feeds so often (WARDCAST_FEEDS_MINUTES)."""
Events = pd.DataFrame
Break = Callable[[Events, np.ndarray, np.random.Generator], Events]
"""Events, which of them came since the fault began, chance; gives broken events."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong: in the events, or in the log; what it must be called, and of which concept."""

    name: str
    kinds: tuple[str, ...]
    concept: str = ""
    site: str = ""
    events: Break | None = None
    log: Callable[[Logged, pd.Timestamp], Logged] | None = None

    def found(self, findings: Sequence[Finding]) -> Finding | None:
        """The first finding that says it."""
        for f in findings:
            about = {name.split("__")[0] for name in f.features}
            if f.severity in LOUD and f.kind in self.kinds and (not self.concept or self.concept in about):
                return f
        return None


def _code(name: str) -> str:
    return f"PHYSIONET2019//{name}"


LABS: Final = tuple(_code(c) for c in replay.physionet2019.MEASURED[8:])


def _which(events: Events, late: np.ndarray, codes: Sequence[str], site: str) -> np.ndarray:
    chosen = late & events["code"].isin(codes).to_numpy() if codes else late
    return chosen & (events["site"] == site).to_numpy() if site else chosen


def gone(*names: str, site: str = "", share: float = 1.0, codes: Sequence[str] = ()) -> Break:
    """Facts that do not come."""
    codes = codes or [_code(n) for n in names]

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        return events[~(_which(events, late, codes, site) & (rng.random(len(events)) < share))]

    return apply


def scaled(name: str, factor: float, offset: float = 0.0, site: str = "", share: float = 1.0) -> Break:
    """Values in another unit."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        wrong = _which(events, late, [_code(name)], site) & (rng.random(len(events)) < share)
        value = events["numeric_value"].to_numpy(np.float64, na_value=np.nan)
        return events.assign(numeric_value=np.where(wrong, value * factor + offset, value))

    return apply


def dated(hours: float, site: str) -> Break:
    """Times that are wrong by so much; what lies ahead of the service's clock is refused."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = _which(events, late, (), site) & (events["source_id"] != "encounter").to_numpy()
        moved = events.assign(when=events["when"] + np.where(here, int(hours * HOUR_US), 0))
        return moved[~here | (moved["when"] <= moved["received"] + HOUR_US // 12)]

    return apply


def repeated(times: int, site: str, codes: Sequence[str]) -> Break:
    """Facts that come again, minutes apart, as if they were new ones."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        again = events[_which(events, late, codes, site)]
        copies = [
            again.assign(
                source_id=again["source_id"] + f"#{k}", **{c: again[c] + k for c in ("when", "received")}
            )
            for k in range(1, times)
        ]
        return pd.concat([events, *copies])

    return apply


def spoken(name: str, site: str) -> Break:
    """Numbers as text that cannot be read as one."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = _which(events, late, [_code(name)], site)
        value = events["numeric_value"].to_numpy(np.float64, na_value=np.nan)
        return events.assign(
            numeric_value=np.where(here, np.nan, value),
            text_value=events["text_value"].astype(object).mask(here, "see report"),
        )

    return apply


def coded(name: str, as_code: str, site: str = "") -> Break:
    """Another code than before."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = _which(events, late, [_code(name)], site)
        return events.assign(code=events["code"].mask(here, as_code))

    return apply


def exchanged(one: str, other: str, site: str) -> Break:
    """Two concepts under each other's code."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = _which(events, late, [_code(one), _code(other)], site)
        turned = {_code(one): _code(other), _code(other): _code(one)}
        return events.assign(code=events["code"].where(~here, events["code"].map(turned)))

    return apply


def frozen(name: str, site: str, patients: int | None = None) -> Break:
    """The last value again and again under new times: of everybody, or of so many patients with the most to come."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        begins = events["when"].to_numpy()[late].min() if late.any() else np.inf
        events = events.sort_values("when", kind="stable")
        here = ((events["code"] == _code(name)) & (events["site"] == site)).to_numpy()
        after = here & (events["when"] >= begins).to_numpy()
        if patients is not None:
            most = events.loc[after, "encounter_id"].value_counts().index[:patients]
            here = here & events["encounter_id"].isin(most).to_numpy()
            after = after & here
        value = events["numeric_value"].astype(np.float64)
        who, mine = events["encounter_id"][here], value[here]
        stands = mine.where(~after[here]).groupby(who).ffill().fillna(mine.groupby(who).transform("first"))
        value = value.where(~here, stands.reindex(events.index))
        return events.assign(numeric_value=value)

    return apply


def held(hours: float, site: str, codes: Sequence[str]) -> Break:
    """Facts that come so much later than they are dated."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = _which(events, late, codes, site)
        return events.assign(received=events["received"] + np.where(here, int(hours * HOUR_US), 0))

    return apply


def aged(years: float) -> Break:
    """Patients of another age."""

    def apply(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
        here = (events["concept"] == "age_years").to_numpy()
        value = events["numeric_value"].to_numpy(np.float64, na_value=np.nan)
        return events.assign(numeric_value=np.where(here, np.clip(value + years, 18, 100), value))

    return apply


def one_sex(events: Events, late: np.ndarray, rng: np.random.Generator) -> Events:
    """Only men."""
    men = (events["concept"] == "male").to_numpy()
    value = events["numeric_value"].to_numpy(np.float64, na_value=np.nan)
    return events.assign(numeric_value=np.where(men, 1.0, value))


def _late(logged: Logged, since: pd.Timestamp) -> np.ndarray:
    return (logged.attempts["prediction_time"] >= since).to_numpy()


def of_features(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Logged, pd.Timestamp], Logged]:
    """A change of the logged table of features."""
    return lambda logged, since: Logged(logged.attempts, change(logged.features.copy()), logged.others)


def of_scores(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Logged, pd.Timestamp], Logged]:
    """A change of the probabilities since the fault began."""

    def apply(logged: Logged, since: pd.Timestamp) -> Logged:
        p = logged.attempts["probability"].to_numpy(np.float64)
        new = np.where(_late(logged, since), change(p), p)
        return Logged(logged.attempts.assign(probability=new), logged.features, logged.others)

    return apply


def still(site: str) -> Callable[[Logged, pd.Timestamp], Logged]:
    """Each patient's features stay what they were: a copy that nobody refreshes."""

    def apply(logged: Logged, since: pd.Timestamp) -> Logged:
        here = _late(logged, since) & (logged.attempts["unit"] == site).to_numpy()
        rows = logged.attempts[here]
        first = rows.groupby("encounter_id", sort=False)["prediction_id"].transform("first")
        features = logged.features.copy()
        features.loc[rows["prediction_id"]] = logged.features.loc[first].to_numpy()
        return Logged(logged.attempts, features, logged.others)

    return apply


def stopped(logged: Logged, since: pd.Timestamp) -> Logged:
    """No prediction any more."""
    return Logged(logged.attempts[~_late(logged, since)].reset_index(drop=True), logged.features)


def another_model(logged: Logged, since: pd.Timestamp) -> Logged:
    """Another bundle than the released one answers."""
    late = _late(logged, since)
    return Logged(logged.attempts[~late].reset_index(drop=True), logged.features, int(late.sum()))


def refused(share: float) -> Callable[[Logged, pd.Timestamp], Logged]:
    """Predictions that are not made, with a reason."""

    def apply(logged: Logged, since: pd.Timestamp) -> Logged:
        odd = _late(logged, since) & (np.random.default_rng(0).random(len(logged.attempts)) < share)
        attempts = logged.attempts.assign(
            status=logged.attempts["status"].mask(odd, "schema_mismatch"),
            reason=logged.attempts["reason"].astype(object).mask(odd, "schema_mismatch"),
            probability=logged.attempts["probability"].mask(odd),
        )
        return Logged(attempts, logged.features)

    return apply


def faults(alert: float) -> list[Fault]:
    """Everything that goes wrong."""
    odds = lambda factor: lambda p: factor * p / (1 - p + factor * p)  # noqa: E731
    return [
        Fault("lactate feed down", FEED, "lactate", events=gone("Lactate")),
        Fault("lactate feed down at A", FEED, "lactate", "A", gone("Lactate", site="A")),
        Fault("heart rate feed down at B", FEED, "heart_rate", "B", gone("HR", site="B")),
        Fault("laboratory down at A", FEED, "creatinine", "A", gone(site="A", codes=LABS)),
        Fault("site B silent", FEED, "heart_rate", "B", gone(site="B")),
        Fault("creatinine 60 % missing", FEED, "creatinine", events=gone("Creatinine", share=0.6)),
        Fault("glucose 60 % missing at B", FEED, "glucose", "B", gone("Glucose", site="B", share=0.6)),
        Fault("temperature 60 % missing at A", FEED, "temperature", "A", gone("Temp", site="A", share=0.6)),
        Fault("code of potassium changed at A", ("rejected_more", *FEED), "potassium", "A",
              coded("Potassium", "PHYSIONET2019//K2", "A")),
        Fault("text for numbers at B", ("rejected_more", *FEED), "glucose", "B", spoken("Glucose", "B")),
        Fault("lactate ×9 at A", UNIT, "lactate", "A", scaled("Lactate", 9.008, site="A")),
        Fault("lactate ×9 in 1/20", UNIT, "lactate", "", scaled("Lactate", 9.008, share=0.05)),
        Fault("glucose ÷18", UNIT, "glucose", events=scaled("Glucose", 1 / 18.0156)),
        Fault("glucose ×18 at B", UNIT, "glucose", "B", scaled("Glucose", 18.0156, site="B")),
        Fault("glucose ÷18 at A in 1/20", UNIT, "glucose", "A", scaled("Glucose", 1 / 18.0156, 0, "A", 0.05)),
        Fault("creatinine ×88.4 at B", UNIT, "creatinine", "B", scaled("Creatinine", 88.4, site="B")),
        Fault("creatinine ×88.4 at A in 1/20", UNIT, "creatinine", "A", scaled("Creatinine", 88.4, 0, "A", 0.05)),
        Fault("bilirubin ×17.1 at A", UNIT, "bilirubin_total", "A", scaled("Bilirubin_total", 17.1, site="A")),
        Fault("calcium ÷4 at A", (*UNIT, "rejected_more"), "calcium", "A", scaled("Calcium", 1 / 4.0078, site="A")),
        Fault("temperature °F at A", (*UNIT, "rejected_more"), "temperature", "A", scaled("Temp", 1.8, 32, "A")),
        Fault("temperature °F at B in 1/20", (*UNIT, "rejected_more"), "temperature", "B",
              scaled("Temp", 1.8, 32, "B", 0.05)),
        Fault("PaCO2 in kPa at A", UNIT, "paco2", "A", scaled("PaCO2", 1 / 7.5006, site="A")),
        Fault("MAP in kPa at B in 1/20", UNIT, "map", "B", scaled("MAP", 1 / 7.5006, 0, "B", 0.05)),
        Fault("FiO2 ÷100 at A", (*UNIT, "rejected_more"), "fio2", "A", scaled("FiO2", 0.01, site="A")),
        Fault("haemoglobin ×10 at A", (*UNIT, "rejected_more"), "hemoglobin", "A", scaled("Hgb", 10, site="A")),
        Fault("heart rate and MAP swapped at A", MEANING, "map", "A", exchanged("HR", "MAP", "A")),
        Fault("SBP and DBP swapped at B", MEANING, "sbp", "B", exchanged("SBP", "DBP", "B")),
        Fault("haematocrit and haemoglobin swapped at A", MEANING, "hemoglobin", "A", exchanged("Hct", "Hgb", "A")),
        Fault("heart rate frozen at A", ("feed_frozen",), "heart_rate", "A", frozen("HR", "A")),
        Fault("systolic pressure frozen at B", ("feed_frozen",), "sbp", "B", frozen("SBP", "B")),
        Fault("one monitor repeats its mean pressure at B", ("values_stuck",), "map", "B", frozen("MAP", "B", 1)),
        Fault("laboratory held back 8 h at B", ("clock_shifted", "inputs_stale"), "", "B", held(8, "B", LABS)),
        Fault("inputs not refreshed at A", ("inputs_still",), "", "A", log=still("A")),
        Fault("dated one hour ahead at A", FEED, "heart_rate", "A", dated(1, "A")),
        Fault("dated one hour behind at B", ("clock_shifted",), "", "B", dated(-1, "B")),
        Fault("dated five hours behind at A", ("clock_shifted",), "", "A", dated(-5, "A")),
        Fault("heart rate three times at B", ("feed_flood",), "heart_rate", "B", repeated(3, "B", [_code("HR")])),
        Fault("laboratory twice at A", ("feed_flood",), "", "A", repeated(2, "A", LABS)),
        Fault("patients 25 years younger", ("drift", "drift_general"), "age_years", events=aged(-25)),
        Fault("only men", ("drift", "drift_general"), "male", events=one_sex),
        Fault("column gone", ("column_absent",), "map",
              log=of_features(lambda f: f.drop(columns=["map__last"]))),
        Fault("numbers as text", ("column_text",), "map",
              log=of_features(lambda f: f.assign(map__last=f["map__last"].astype(str).str.replace(".", ",")))),
        Fault("alerts silent", ("alerts_silent", "alerts_few"),
              log=of_scores(lambda p: np.minimum(p, alert * 0.99))),
        Fault("alerts flood", ("alerts_flood",), log=of_scores(odds(4.0))),
        Fault("predictions stop", ("predictions_stopped",), log=stopped),
        Fault("another model answers", ("predictions_stopped",), log=another_model),
        Fault("a third not scored", ("not_scored",), log=refused(0.33)),
        Fault("empty day", ("no_predictions",), events=lambda e, late, rng: e[~late],
              log=lambda logged, since: Logged(logged.attempts[:0], logged.features[:0])),
    ]  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """What it takes to judge a day: the model, what is known of it, and where its reports go."""

    bundle: Bundle
    watched: Watched
    mix_ups: Any
    folder: Path

    def day(
        self, told: replay.Replay, ledger: Ledger, day: int, fault: Fault | None = None
    ) -> tuple[list[Finding], Intake, Logged]:
        """The findings at the end of a day, the arrivals judged, and the log."""
        facts, logged = self.made(told, day, fault)
        return (*self.judged(ledger, day, facts, logged), logged)

    def made(self, told: replay.Replay, day: int, fault: Fault | None = None) -> tuple[pd.DataFrame, Logged]:
        """What comes in on a day, and what is scored."""
        rows, events = told.day(day)
        begins, now = replay.midnight(day) + 6 * HOUR_US, replay.midnight(day + 1)
        if fault and fault.events:
            late = (events["when"] >= begins).to_numpy()
            events = fault.events(events, late, np.random.default_rng(day))
        came = events[events["received"].between(replay.midnight(day), now - 1)]
        logged = self._logged(replay.score(self.bundle, events, rows))
        if fault and fault.log:
            logged = fault.log(logged, pd.Timestamp(begins, unit="us", tz="UTC"))
        return replay.facts(came), logged

    def judged(
        self, ledger: Ledger, day: int, facts: pd.DataFrame, logged: Logged
    ) -> tuple[list[Finding], Intake]:
        """The findings at the end of a day, and the arrivals judged."""
        now = replay.midnight(day + 1)
        intake = judge(ledger.add(facts, now), now, period_h=24, mix_ups=self.mix_ups)
        return self._examined(logged, day, intake.findings), intake

    def small(self, logged: Logged, day: int) -> list[Finding]:
        """The findings on 50 of a day's rows, the last one among them."""
        return self._examined(of_fifty(logged), day, ())

    def _examined(self, logged: Logged, day: int, came: Sequence[Finding]) -> list[Finding]:
        since, until = (datetime.fromtimestamp(replay.midnight(d) / 1e6, UTC) for d in (day, day + 1))
        result = examine(
            logged,
            self.watched,
            since=since,
            until=until,
            folder=self.folder,
            ran_at=until,
            evidently=False,
            came=came,
        )
        return list(result.findings)

    def _logged(self, scored: replay.Scored) -> Logged:
        n = len(scored.rows)
        attempts = pd.DataFrame(
            {
                "prediction_id": [f"p{k}" for k in range(n)],
                "encounter_id": scored.rows["encounter_id"].to_numpy(),
                "prediction_time": from_micros(scored.rows["when"].to_numpy(np.int64)),
                "status": "scored",
                "reason": None,
                "probability": scored.probability,
                "page": scored.probability >= self.watched.threshold,
                "unit": scored.rows["site"].to_numpy(),
            }
        )
        order = np.argsort(attempts["prediction_time"].to_numpy(), kind="stable")
        features = scored.features.set_axis(attempts["prediction_id"].to_numpy(), axis=0)
        return Logged(attempts.take(order).reset_index(drop=True), features)


def of_fifty(logged: Logged) -> Logged:
    """50 rows of a day, the last one among them."""
    chosen = np.random.default_rng(50).choice(len(logged.attempts) - 1, 49, replace=False)
    rows = logged.attempts.iloc[np.sort(np.r_[chosen, len(logged.attempts) - 1])].reset_index(drop=True)
    return Logged(rows, logged.features)


def evidently_says(now: Logged, then: pd.DataFrame, columns: Sequence[str]) -> int | None:
    """In how many columns Evidently's drift preset, as its documentation shows it, sees drift; None where it raises."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    current = now.features.reindex(now.attempts["prediction_id"]).reset_index(drop=True)
    kept = [c for c in columns if c in current]
    try:
        definition = DataDefinition(numerical_columns=kept)
        snapshot = Report([DataDriftPreset()]).run(
            Dataset.from_pandas(current[kept], data_definition=definition),
            Dataset.from_pandas(then[kept], data_definition=definition),
        )
        drifted = [m for m in snapshot.dict()["metrics"] if m["metric_name"].startswith("DriftedColumns")]
        return int(drifted[0]["value"]["count"])
    except Exception:
        return None


@dataclass(frozen=True)
class Stop:
    """A feed that stops at noon, in microseconds: its last fact, and when its silence is due to be told.

    Due is the first look, every five minutes by the clock, after the later of 15 minutes and the time in which the
    chance of nothing, by Poisson, comes down to 1e-4. What is expected is counted plainly from the weeks before: the
    feed's mean of the hour of the day (these data have no days of the week), times how full the site is, which is what
    its vital signs brought in the 24 hours before over what they bring in a day.
    """

    feed: int
    last: int
    due: int

    @classmethod
    def at_noon(cls, ledger: Ledger, feed: int, noon: int) -> Stop:
        """From what came up to noon."""
        stop, first = (
            noon // HOUR_US,
            -(-ledger.since // HOUR_US) + 24,
        )  # the first day is a hospital that fills
        site = ledger.feeds[feed][2]
        vital = [f for f, name in enumerate(ledger.feeds) if name[2] == site and name[1] in VITALS]
        days = (stop - 12 - first) // 24
        usual = ledger.counts(first, stop - 12).reshape(len(ledger.feeds), days, 24).mean(axis=1)
        full = ledger.counts(stop - 24, stop)[vital].sum() / usual[vital].sum()
        last = int(ledger.last[feed])
        minute = last + np.arange(2 * 24 * 60) * MINUTE_US
        nothing = np.exp(-np.cumsum(usual[feed][minute // HOUR_US % 24] * full / 60))
        soonest = last + max(15, int(np.searchsorted(-nothing, -1e-4)) + 1) * MINUTE_US
        return cls(feed, last, -(-soonest // LOOK_US) * LOOK_US)


def silence_delays(told: replay.Replay, ledger: Ledger, day: int) -> Iterator[dict[str, Any]]:
    """Each feed in turn stopped at noon: minutes from its last fact until it is told, and how many in time."""
    noon = replay.midnight(day) + 12 * HOUR_US
    facts = replay.facts(told.arrived(day, day + 2))
    ledger = ledger.add(facts[(facts["received"] < noon).to_numpy()], noon)
    late, soon = [], 0
    for feed, (_, concept, site) in enumerate(ledger.feeds):
        stop = Stop.at_noon(ledger, feed, noon)
        if not noon < stop.due <= noon + 12 * HOUR_US:
            continue  # too rare to be told within the day, or silent before
        mine = ((facts["concept"] == concept) & (facts["site"] == site)).to_numpy()
        left = facts[~mine & (facts["received"] >= noon).to_numpy()]
        when = _told_at(ledger, left, stop)
        late.append((when - stop.due) / LOOK_US)
        soon += (when - stop.last) <= 15 * MINUTE_US + LOOK_US
        if (concept, site) in (("heart_rate", "A"), ("temperature", "B"), ("glucose", "A"), ("lactate", "B")):
            minutes, due = ((t - stop.last) / MINUTE_US for t in (when, stop.due))
            name = f"silence told on day {day}: {concept} at {site}"
            yield {"name": name, "value": minutes, "unit": "min", "reference": due}
    for looks in (0, 1, 3):
        name = f"feeds silent on day {day}, told at most {looks} looks after they are due"
        yield {
            "name": name,
            "value": float(np.mean(np.array(late) <= looks)),
            "unit": f"share of {len(late)}",
        }


def _told_at(ledger: Ledger, left: pd.DataFrame, stop: Stop) -> int:
    """The first look from two before it is due that has the feed as silent."""
    _, concept, site = ledger.feeds[stop.feed]
    now = stop.due - 2 * LOOK_US
    while True:
        known = ledger.add(left[(left["received"] < now).to_numpy()], now)
        if (concept, site) in look(known, now).down or now > stop.due + 24 * HOUR_US:
            return now
        now += LOOK_US


def bench() -> Iterator[dict[str, Any]]:
    """Clean days, faults, Evidently on the same, how soon silence is told, and what it takes."""
    folder = replay.data()
    if folder is None:
        reason = "PhysioNet 2019 is not there: set WARDCAST_DATA"
        yield {"name": "faults found", "value": None, "unit": "share", "reason": reason}
        return
    half = int(os.environ.get("WARDCAST_BENCH_HALF", "1"))
    begun = time.process_time()
    told = replay.Replay.of(folder, half, TAUGHT + JUDGED + 3, A_DAY)
    bundle = Bundle.load(ROOT / "models" / "sepsis" / "released")
    watched = Watched.of(bundle)
    with tempfile.TemporaryDirectory() as reports, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mix_ups = unit_mix_ups(Reference.from_profile(watched.profile))
        yield from _judged(told, Judge(bundle, watched, mix_ups, Path(reports)))
    yield {"name": "all of it", "value": time.process_time() - begun, "unit": "CPU s", "goal": "<= 600"}


def odds_found(scored: pd.DataFrame, most: float) -> Iterator[dict[str, Any]]:
    """How often outcomes at half or twice the predicted odds are found within 500 stays, and how often they can be; and
    how many stays it takes to find halved odds in 95 of 100 runs.

    Stays of the clean days with their real probabilities; whether each is septic is drawn. The reference is what the
    best test that looks once, and raises as many false alarms within 500 stays, finds: it counts septic stays.
    """
    expected = scored.groupby(["unit", "encounter_id"], observed=True)["probability"].sum().reset_index()
    rows = 500 * len(scored) / len(expected)
    for site, part in {"A": expected[expected["unit"] == "A"], "B": expected[expected["unit"] == "B"],
                       "A and B": expected}.items():  # fmt: skip
        chance = np.minimum(part["probability"].to_numpy(np.float64) / most, 0.95)
        sizes = {1.0: 500, 0.5: MOST_STAYS, 2.0: 500}
        runs = {odds: _drawn(chance, odds, most, n) for odds, n in sizes.items()}
        false = float((runs[1.0][0] <= 500).mean())
        unit = f"share, prevalence {chance.mean():.3f}, {rows:,.0f} predicted hours"
        for odds, words in ((0.5, "odds halved"), (2.0, "odds doubled")):
            name, found = f"{words}, found within 500 stays at {site}", float((runs[odds][0] <= 500).mean())
            yield {"name": name, "value": found, "unit": unit, "reference": _best(runs, odds, 500, false)}
        yield {
            "name": f"right odds doubted within 500 stays at {site}",
            "value": false,
            "unit": unit,
            "goal": "<= 0.1",
        }
        needed = float(np.quantile(runs[0.5][0], 0.95, method="higher"))
        enough = [
            n for n in range(100, MOST_STAYS + 1, 50) if _best(_again(chance, n), 0.5, n, false) >= 0.95
        ]
        yield {
            "name": f"odds halved, found in 95 of 100 at {site}", "value": needed if np.isfinite(needed) else None,
            "unit": f"stays, prevalence {chance.mean():.3f}", "reference": enough[0] if enough else None,
        }  # fmt: skip


Runs = dict[float, tuple[np.ndarray, np.ndarray]]
"""By odds: after how many stays each run was found (infinite: not), and its septic stays less those predicted, in
standard errors, after each stay."""


def _best(runs: Runs, odds: float, n: int, false: float) -> float:
    """What a single look after so many stays finds that is wrong as often, both ways together."""
    right, wrong = runs[1.0][1][:, n - 1], runs[odds][1][:, n - 1]
    lowest, highest = np.quantile(right, [false / 2, 1 - false / 2])
    return float((wrong < lowest).mean() if odds < 1 else (wrong > highest).mean())


def _drawn(
    chance: np.ndarray, odds: float, most: float, n: int, runs: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of the monitor's test over ``n`` stays, by odds as in :data:`Runs`."""
    p, septic = _outcomes(chance, odds, n, runs)
    found = [evidence(y * most, q * most, most).found(LIKELY) for y, q in zip(septic, p, strict=True)]
    return np.array([np.inf if after is None else after for after in found]), _apart(p, septic)


def _again(chance: np.ndarray, n: int) -> Runs:
    """Fresh stays for the single look, at right and halved odds."""
    drawn = {odds: _apart(*_outcomes(chance, odds, n, 1000)) for odds in (1.0, 0.5)}
    return {odds: (np.empty(0), apart) for odds, apart in drawn.items()}


def _outcomes(chance: np.ndarray, odds: float, n: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    p = rng.choice(chance, (runs, n))
    return p, (rng.random((runs, n)) < odds * p / (1 - p + odds * p)).astype(np.float64)


def _apart(p: np.ndarray, septic: np.ndarray) -> np.ndarray:
    return np.cumsum(septic - p, axis=1) / np.sqrt(np.cumsum(p * (1 - p), axis=1))


@dataclass(frozen=True)
class Verdict:
    """What became of one fault: the finding that told it, its onset error in hours, whether its site was named, and in
    how many columns Evidently saw drift."""

    fault: Fault
    told_by: Finding | None
    hours: float
    site: bool
    theirs: int | None

    @classmethod
    def of(cls, fault: Fault, findings: Sequence[Finding], theirs: int | None, day: int) -> Verdict:
        f = fault.found(findings)
        begins = replay.midnight(day) / 1e6 + 6 * 3600
        hours = (f.since.timestamp() - begins) / 3600 if f and f.since else np.nan
        return cls(fault, f, hours, bool(f) and f"unit {fault.site}" in f.where, theirs)

    def line(self, clean: int | None) -> dict[str, Any]:
        """The fault's line, with the columns in which Evidently sees drift, and those of the same day without it."""
        kind = f"found as {self.told_by.kind}" if self.told_by else "missed"
        since = "" if np.isnan(self.hours) else f", since {self.hours:+.0f} h"
        site = ", site named" if self.fault.site and self.site else ""
        theirs = (
            "raises" if self.theirs is None else f"{self.theirs} columns drift, {clean} without the fault"
        )
        unit = f"{kind}{since}{site}; Evidently: {theirs}"
        return {"name": f"fault: {self.fault.name}", "value": float(self.told_by is not None), "unit": unit}


def _judged(told: replay.Replay, judging: Judge) -> Iterator[dict[str, Any]]:
    ledger = Ledger.empty(replay.midnight(0)).add(
        replay.facts(told.arrived(0, TAUGHT)), replay.midnight(TAUGHT)
    )
    broken = faults(judging.watched.threshold)
    columns = choose(judging.watched.gain, list(judging.watched.profile["features"]), 30)
    then = replay.score(judging.bundle, *reversed(told.day(TAUGHT - 1))).features
    verdicts: list[Verdict] = []
    false: list[tuple[int, str]] = []
    theirs: list[int | None] = []
    scored: list[pd.DataFrame] = []
    small, fifty, silent = [], [], []
    for day in range(TAUGHT, TAUGHT + JUDGED):
        findings, intake, logged = judging.day(told, ledger, day)
        theirs.append(evidently_says(logged, then, columns))
        false += [(day, f"{f.kind}: {f.what} {f.where}") for f in findings if f.severity in LOUD]
        for fault in broken[day - TAUGHT :: JUDGED]:
            findings, _, spoilt = judging.day(told, ledger, day, fault)
            verdicts.append(Verdict.of(fault, findings, evidently_says(spoilt, then, columns), day))
            yield verdicts[-1].line(theirs[-1])
        scored.append(logged.attempts[["unit", "encounter_id", "probability"]])
        if day % 3 == 0:
            small.append(any(f.severity in LOUD for f in judging.small(logged, day)))
            fifty.append(evidently_says(of_fifty(logged), then, columns))
        if day in SILENT:
            yield from silence_delays(told, ledger, day)
        silent.append(silences(told, intake.ledger, day))
        ledger = intake.ledger
    yield from _figures(verdicts, false)
    yield from _silences(silent)
    yield from odds_found(pd.concat(scored), Rule.of(judging.bundle.spec).most)
    yield {
        "name": "clean days of 50 rows with an alarm or warning",
        "value": sum(small),
        "unit": f"of {len(small)}",
    }
    yield from _theirs(verdicts, theirs, fifty)


def silences(told: replay.Replay, ledger: Ledger, day: int) -> tuple[int, int]:
    """How often a feed of a clean day was marked as silent, and how often an alarm, had it been looked at all day long:
    by what was expected, at its end, of each silence."""
    begin, end = replay.midnight(day), replay.midnight(day + 1)
    first, limits = ledger.since // HOUR_US, FeedLimits()
    usual = expected(ledger, first, begin // HOUR_US, end // HOUR_US, "UTC")
    facts = replay.facts(told.arrived(day - 7, day + 1))
    marked = alarms = 0
    for feed, (_, concept, site) in enumerate(ledger.feeds):
        mine = (facts["concept"] == concept) & (facts["site"] == site)
        came = np.unique(np.r_[facts.loc[mine, "received"].to_numpy(np.int64), end])
        for last, until in zip(came[:-1].tolist(), came[1:].tolist(), strict=True):
            if until <= begin or until - last < limits.least_us:
                continue
            if usual.plain_chance_of_nothing(feed, last, until) < limits.silence:
                marked += 1
                alarms += usual.chance_of_nothing(feed, last, until) < limits.silence / len(ledger.feeds)
    return marked, alarms


def _silences(silent: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    marked, alarms = np.sum(silent, axis=0).tolist()
    unit = f"in {len(silent)} days, looked at all day long"
    yield {"name": "clean feeds marked as silent (p < 1e-4)", "value": marked, "unit": unit}
    yield {"name": "alarms of silence on clean days", "value": alarms, "unit": unit, "goal": "<= 1"}


def _figures(verdicts: Sequence[Verdict], false: Sequence[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    missed = [v.fault.name for v in verdicts if v.told_by is None]
    yield {
        "name": "faults found",
        "value": 1 - len(missed) / len(verdicts),
        "unit": f"of {len(verdicts)}" + (f"; missed: {', '.join(missed)}" if missed else ""),
        "goal": ">= 0.95",
    }
    yield {
        "name": "clean days with an alarm or warning",
        "value": len({day for day, _ in false}),
        "unit": "; ".join([f"of {JUDGED}", *(what for _, what in false[:3])]),
        "goal": "<= 1",
    }
    right = [abs(v.hours) <= 2 for v in verdicts if not np.isnan(v.hours)]
    yield {
        "name": "onset within 2 h",
        "value": float(np.mean(right)),
        "unit": f"share of {len(right)} that say one",
    }
    where = [v.site for v in verdicts if v.fault.site and v.told_by]
    yield {"name": "site named", "value": float(np.mean(where)), "unit": f"share of {len(where)} at one site"}


def _theirs(
    verdicts: Sequence[Verdict], clean: Sequence[int | None], few: Sequence[int | None]
) -> Iterator[dict[str, Any]]:
    """Evidently on the same: any column that drifts, as its report marks it, counts as found, and as false."""
    raised = [v.fault.name for v in verdicts if v.theirs is None]
    said = {"faults": [v.theirs for v in verdicts], "clean days": clean, "clean days of 50 rows": few}
    for name, columns in said.items():
        drift = [c for c in columns if c]
        middle = f"; {np.median(drift):.0f} columns of 30 in the middle" if drift else ""
        unit = f"of {len(columns)}{middle}" + (f"; raises: {', '.join(raised)}" if name == "faults" else "")
        yield {"name": f"{name} in which Evidently sees drift", "value": len(drift), "unit": unit}
