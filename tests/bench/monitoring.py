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
from serving.monitoring.feeds import look  # noqa: E402
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
LOUD: Final = ("alarm", "watch")
FEED: Final = ("feed_down", "feed_thin", "feed_silent", "missing_more")
MEANING: Final = ("values_disagree", "values_moved", "drift", "scale", "unit_wrong", "unit_mixed")
UNIT: Final = ("unit_wrong", "unit_mixed", "scale")
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


def evidently_says(now: Logged, then: pd.DataFrame, columns: Sequence[str]) -> bool | None:
    """Whether Evidently's drift preset, as its documentation shows it, flags a column; None where it raises."""
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
        return any(m["metric_name"].startswith("DriftedColumns") and m["value"]["count"] > 0
                   for m in snapshot.dict()["metrics"])  # fmt: skip
    except Exception:
        return None


def silence_delays(told: replay.Replay, ledger: Ledger, day: int) -> Iterator[dict[str, Any]]:
    """Minutes from the last fact of a feed stopped at 12:00 until it is told, looking every five minutes.

    The reference is the later of 15 minutes and the time in which Poisson's chance of nothing comes down to 1e-4.
    """
    noon = replay.midnight(day) + 12 * HOUR_US
    facts = replay.facts(told.arrived(day, day + 2))
    weeks = ledger.counts(replay.midnight(day - 14) // HOUR_US, replay.midnight(day) // HOUR_US)
    for concept, site in (("heart_rate", "A"), ("temperature", "B"), ("glucose", "A"), ("lactate", "B")):
        stop = ((facts["concept"] == concept) & (facts["site"] == site)).to_numpy()
        late = (facts["received"] >= noon).to_numpy()
        last = int(facts.loc[stop & ~late, "received"].max())
        left = facts[~(stop & late)]
        (feed,) = (f for f, name in enumerate(ledger.feeds) if name[1:] == (concept, site))
        least = max(15.0, float(-np.log(1e-4) / weeks[feed].mean() * 60))
        known, now, minutes = ledger.add(left[left["received"] < last + 1], last + 1), last + 1, 5
        while (concept, site) not in look(known, now).down and minutes < 24 * 60:
            before, now = now, last + minutes * HOUR_US // 60
            came = left["received"].between(before, now - 1)
            known, minutes = known.add(left[came], now), minutes + 5
        name = f"silence told: {concept} at {site}"
        yield {"name": name, "value": (now - last) * 60 / HOUR_US, "unit": "min", "reference": least}


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
    yield {"name": "all of it", "value": time.process_time() - begun, "unit": "CPU s", "goal": "<= 360"}


def odds_found(scored: pd.DataFrame, most: float) -> Iterator[dict[str, Any]]:
    """How often outcomes at half or twice the predicted odds are found within 500 stays, and how often they can be.

    Stays of the clean days with their real probabilities; whether each is septic is drawn. The reference is what the
    best test of 500 stays finds that raises as many false alarms, both ways together: it counts septic stays, and looks
    once.
    """
    expected = scored.groupby(["unit", "encounter_id"], observed=True)["probability"].sum().reset_index()
    for site, part in {"A": expected[expected["unit"] == "A"], "B": expected[expected["unit"] == "B"],
                       "A and B": expected}.items():  # fmt: skip
        chance = np.minimum(part["probability"].to_numpy(np.float64) / most, 0.95)
        runs = {odds: _drawn(chance, odds, most, np.random.default_rng(5)) for odds in (1.0, 0.5, 2.0)}
        false = float(runs[1.0][0].mean())
        lowest, highest = np.quantile(runs[1.0][1], [false / 2, 1 - false / 2])
        name, unit = f"found within 500 stays at {site}", f"share, prevalence {chance.mean():.3f}"
        limit = {0.5: (runs[0.5][1] < lowest).mean(), 2.0: (runs[2.0][1] > highest).mean()}
        for odds, words in ((0.5, "odds halved"), (2.0, "odds doubled")):
            yield {
                "name": f"{words}, {name}", "value": float(runs[odds][0].mean()), "unit": unit,
                "reference": float(limit[odds]),
            }  # fmt: skip
        yield {"name": f"right odds doubted, {name[6:]}", "value": false, "unit": unit, "goal": "<= 0.1"}


def _drawn(
    chance: np.ndarray, odds: float, most: float, rng: np.random.Generator, runs: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each run was found, and how far its septic stays are from as many as predicted, in standard errors."""
    found, apart = np.zeros(runs, bool), np.zeros(runs)
    for k in range(runs):
        p = rng.choice(chance, 500)
        septic = rng.random(500) < odds * p / (1 - p + odds * p)
        found[k] = evidence(septic * most, p * most, most).found(LIKELY) is not None
        apart[k] = (septic.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
    return found, apart


@dataclass(frozen=True)
class Verdict:
    """What became of one fault: the finding that told it, its onset error in hours, whether its site was named."""

    fault: Fault
    told_by: Finding | None
    hours: float
    site: bool
    shown: Logged

    @classmethod
    def of(cls, fault: Fault, findings: Sequence[Finding], shown: Logged, day: int) -> Verdict:
        f = fault.found(findings)
        begins = replay.midnight(day) / 1e6 + 6 * 3600
        hours = (f.since.timestamp() - begins) / 3600 if f and f.since else np.nan
        return cls(fault, f, hours, bool(f) and f"unit {fault.site}" in f.where, shown)

    def line(self) -> dict[str, Any]:
        kind = f"found as {self.told_by.kind}" if self.told_by else "missed"
        since = "" if np.isnan(self.hours) else f", since {self.hours:+.0f} h"
        site = ", site named" if self.fault.site and self.site else ""
        name = f"fault: {self.fault.name}"
        return {"name": name, "value": float(self.told_by is not None), "unit": f"{kind}{since}{site}"}


def _judged(told: replay.Replay, judging: Judge) -> Iterator[dict[str, Any]]:
    ledger = Ledger.empty(replay.midnight(0)).add(
        replay.facts(told.arrived(0, TAUGHT)), replay.midnight(TAUGHT)
    )
    broken = faults(judging.watched.threshold)
    columns = choose(judging.watched.gain, list(judging.watched.profile["features"]), 30)
    verdicts: list[Verdict] = []
    false: list[tuple[int, str]] = []
    clean: list[Logged] = []
    few, seconds = 0, 0.0
    scored: list[pd.DataFrame] = []
    for day in range(TAUGHT, TAUGHT + JUDGED):
        for fault in broken[day - TAUGHT :: JUDGED]:
            findings, _, logged = judging.day(told, ledger, day, fault)
            kept = [c for c in columns if c in logged.features]
            shown = Logged(logged.attempts, logged.features[kept])
            verdicts.append(Verdict.of(fault, findings, shown, day))
            yield verdicts[-1].line()
        start = time.process_time()
        findings, intake, logged = judging.day(told, ledger, day)
        seconds += time.process_time() - start
        scored.append(logged.attempts[["unit", "encounter_id", "probability"]])
        false += [(day, f"{f.kind}: {f.what} {f.where}") for f in findings if f.severity in LOUD]
        if day % 3 == 0:
            few += any(f.severity in LOUD for f in judging.small(logged, day))
            clean.append(Logged(logged.attempts, logged.features[list(columns)]))
        if day == TAUGHT + 14:
            yield from silence_delays(told, ledger, day)
        ledger = intake.ledger
    yield from _figures(verdicts, false)
    yield from odds_found(pd.concat(scored), Rule.of(judging.bundle.spec).most)
    yield {"name": "clean days of 50 rows with an alarm or warning", "value": few, "unit": f"of {len(clean)}"}
    yield {"name": "one day judged", "value": seconds / JUDGED, "unit": "CPU s, features and scores included"}
    then = replay.score(judging.bundle, *reversed(told.day(TAUGHT - 1))).features
    yield from _theirs(verdicts, clean, then, columns)


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
    verdicts: Sequence[Verdict], clean: Sequence[Logged], then: pd.DataFrame, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    said = {v.fault.name: evidently_says(v.shown, then, columns) for v in verdicts}
    raised = [name for name, drift in said.items() if drift is None]
    blind = [name for name, drift in said.items() if drift is False]
    unit = f"of {len(said)}; no drift: {', '.join(blind)}; raises: {', '.join(raised)}"
    yield {
        "name": "faults in which Evidently drifts",
        "value": sum(map(bool, said.values())) / len(said),
        "unit": unit,
    }
    false = sum(evidently_says(day, then, columns) is not False for day in clean)
    yield {
        "name": "clean days on which Evidently drifts or raises",
        "value": false,
        "unit": f"of {len(clean)}",
    }
    few = sum(evidently_says(of_fifty(day), then, columns) is not False for day in clean)
    yield {
        "name": "clean days of 50 rows on which Evidently drifts",
        "value": few,
        "unit": f"of {len(clean)}",
    }
