"""One run of the monitor: read the prediction log, compare it with the bundle's reference, write what was found.

It must survive what it is there to report: no predictions, empty columns, a report engine that fails. Each becomes a
finding. Only settings that cannot work (no bundle, a store that does not open) end the run, and the heartbeat says so.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.clock import to_utc
from features.concepts import loader
from features.errors import DataError, SpecError, WardcastError
from models.profile import sample
from serving.clock import to_us
from serving.monitoring import intake as arrivals
from serving.monitoring import outputs
from serving.monitoring.checks import Checked, check_inputs, summarise, worst_first
from serving.monitoring.consistency import check_consistency
from serving.monitoring.evidently_report import EvidentlyReport, choose, drift_report
from serving.monitoring.findings import ALARM, NOTE, WATCH, Batch, Finding, Limits, Reference
from serving.monitoring.inputs import MixUp, concept_of, mix_ups_from_table
from serving.monitoring.ledger import Ledger
from serving.monitoring.logged import Logged, read_log
from serving.monitoring.lookback import LookBack, look_back
from serving.monitoring.metrics import gauges
from serving.monitoring.page import render_report
from serving.monitoring.result import GAUGES, HEARTBEAT, LAST, MonitorResult, write_atomically
from serving.monitoring.safely import safely
from serving.monitoring.telling import tell
from serving.notices import ALARMS
from serving.store import scores

if TYPE_CHECKING:
    from models.bundle import Bundle
    from serving.settings import Settings
    from serving.store.store import Store

PERIOD: Final = timedelta(days=7)
MOST_COLUMNS: Final = 30
REFERENCE_ROWS: Final = 5_000
KEEP_RUNS: Final = 60
BY_THE_MINUTE: Final = ("feed_down", "clock_shifted")
PROBABILITY: Final = "probability"


@dataclass(frozen=True)
class Watched:
    """What the monitor needs to know of a model.

    Attributes
    ----------
    model_id : str
    profile : mapping
        The bundle's ``reference.json``.
    threshold : float
        Probability at which the ward is paged.
    gain : mapping of feature to its share of the model's gain
    derived : mapping of ratio or score to the concepts it is computed from
    """

    model_id: str
    profile: Mapping[str, Any]
    threshold: float
    gain: Mapping[str, float]
    derived: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle) -> Watched:
        """Read it off a bundle.

        Raises
        ------
        SpecError
            The bundle has no reference profile.
        """
        if not {"n", "shares", "features", "probability"} <= set(bundle.reference):
            raise SpecError(
                f"Bundle {bundle.model_id} has no reference profile, so there is nothing to compare with. "
                "Train the model again; `wardcast train` writes one."
            )
        features = bundle.spec.features
        names = [*(ratio.name for ratio in features.ratios), *features.scores]
        derived = {name: features.concept_of(name) for name in names}
        return cls(
            bundle.model_id, bundle.reference, float(bundle.thresholds["alert"]), bundle.gain(), derived
        )


def monitor(
    settings: Settings,
    *,
    output: Path | None = None,
    since: str | datetime | None = None,
    until: str | datetime | None = None,
    labels: Path | None = None,
) -> MonitorResult:
    """Compare logged predictions with the model's reference; write page, JSON, Evidently's report and gauges.

    Parameters
    ----------
    settings : Settings
        Names the store, the sepsis bundle and ``var``.
    output : Path or None
        Folder for the report; default ``var/monitor/runs/<time>``, of which the last sixty are kept.
    since, until : instant or None
        Prediction times ``since <= t < until``; text without an offset is in the site's time zone. By default the
        seven days up to now, or, when the service runs on its sender's clock, up to the last prediction.
    labels : Path or None
        A file of outcomes (:func:`serving.monitoring.outcomes.from_file`); without, the store's events tell them.

    Raises
    ------
    WardcastError
        The bundle or the store cannot be opened, or the period is empty. The heartbeat has it too.
    """
    home = settings.var / "monitor"
    started = datetime.now(UTC)
    _beat(home, started, "running")
    try:
        result = _monitor(settings, home, started, output, since, until, labels)
    except Exception as error:
        known = str(error) if isinstance(error, WardcastError) else type(error).__name__
        _beat(home, started, "failed", error=known)
        raise
    _beat(home, started, "ok", headline=result.headline)
    return result


def _monitor(
    settings: Settings,
    home: Path,
    started: datetime,
    output: Path | None,
    since: str | datetime | None,
    until: str | datetime | None,
    labels: Path | None,
) -> MonitorResult:
    from models.bundle import Bundle
    from serving.store.store import Store

    bundle = Bundle.load(settings.sepsis_model)
    store = Store.open(settings.store_url, settings.store_key or None, settings.site)
    try:
        opens, closes = _period(store, settings, bundle, since, until)
        logged = read_log(store, bundle, opens, closes)
        came, intake = _intake(store, Watched.of(bundle), settings, home, opens, closes)
        back = look_back(store, bundle, settings, opens, closes, labels, logged.attempts)
    finally:
        store.close()
    folder = output or home / "runs" / f"{started:%Y-%m-%dT%H-%M-%S}Z"
    result = examine(
        logged,
        Watched.of(bundle),
        since=opens,
        until=closes,
        folder=folder,
        ran_at=started,
        timezone=settings.timezone,
        came=came,
        back=back,
        site=settings.site,
    )
    if intake is not None:
        arrivals.keep(home, intake, to_us(closes))
    result = _news(settings, result)
    write_atomically(home / ALARMS, json.dumps(alarms(result)) + "\n")
    write_atomically(home / LAST, _json(result))
    write_atomically(home / GAUGES, gauges(result))
    if output is None:
        _prune(home / "runs")
    return result


def alarms(result: MonitorResult) -> dict[str, Any]:
    """The alarms of a run, as pages and cards show them (:class:`serving.notices.Notices`).

    ``units`` are those that an alarm names; none where it is about all. Feeds are left out: they are looked at anew
    every few minutes, and said from there.
    """
    loud = [f for f in result.findings if f.severity == ALARM and f.kind not in BY_THE_MINUTE]
    told = [
        {
            "kind": f.kind,
            "what": f.what,
            "where": f.where,
            "units": f.units,
            "since": to_us(f.since) if f.since else None,
        }
        for f in loud
    ]
    return {"now": to_us(result.until), "alarms": told}


def _news(settings: Settings, result: MonitorResult) -> MonitorResult:
    """Have webhooks told of new alarms; where that fails, the result says so."""
    from serving.store.store import Store

    def send() -> list[Finding]:
        store = Store.open(settings.store_url, settings.store_key or None, settings.site)
        try:
            tell(store, settings, result.findings, "run")
        finally:
            store.close()
        return []

    failed = safely("whom to tell of alarms", send)
    return replace(result, findings=(*result.findings, *failed)) if failed else result


def _intake(
    store: Store, watched: Watched, settings: Settings, home: Path, opens: datetime, closes: datetime
) -> tuple[list[Finding], arrivals.Intake | None]:
    """What the arrivals show; a fault in this check is a finding, and keeps the rest from nothing."""
    period_h = int((closes - opens) / timedelta(hours=1))
    mix_ups = unit_mix_ups(Reference.from_profile(watched.profile))
    found: list[arrivals.Intake] = []

    def check() -> list[Finding]:
        ledger = arrivals.read_on(store, Ledger.load(home / arrivals.LEDGER), to_us(closes))
        found.append(
            arrivals.judge(
                ledger, to_us(closes), period_h=period_h, mix_ups=mix_ups, timezone=settings.timezone
            )
        )
        return found[0].findings

    return safely("feeds and units", check), found[0] if found else None


def examine(
    logged: Logged,
    watched: Watched,
    *,
    since: datetime,
    until: datetime,
    folder: Path,
    ran_at: datetime,
    limits: Limits | None = None,
    timezone: str = "UTC",
    evidently: bool = True,
    came: Sequence[Finding] = (),
    back: LookBack | None = None,
    site: str = "",
) -> MonitorResult:
    """Compare a period's log with the reference, and write the report into ``folder``; needs no store and no bundle.

    ``came`` is what the arrivals showed (:func:`serving.monitoring.intake.judge`): it goes before what the inputs show.
    ``back`` is what became of earlier predictions, and what people did (:func:`serving.monitoring.lookback.look_back`).
    ``evidently=False`` leaves out Evidently's report (seconds) and keeps our own checks (fractions of one).
    """
    begun = time.monotonic()
    limits = limits or Limits()
    reference = Reference.from_profile(watched.profile)
    scored = logged.attempts[logged.attempts["status"] == "scored"].reset_index(drop=True)
    sample = scored if logged.sample is None else logged.sample
    batch = _batch(logged, sample)
    checked = _checked(batch, reference, limits, watched)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    report, error = _evidently(batch, sample, watched, folder, rng) if evidently else (None, "switched off")
    threshold = watched.threshold
    own = [*checked.findings, *safely("consistency", lambda: check_consistency(batch, reference, limits))]
    findings = [
        *safely("freshness", lambda: outputs.check_fresh(logged.attempts, until)),
        *safely("alerts", lambda: outputs.check_alerts(scored, reference, threshold, limits)),
        *safely("scores", lambda: outputs.check_scores(scored, reference, limits)),
        *safely("what was not scored", lambda: outputs.check_not_scored(logged.attempts)),
        *(back.findings if back else ()),
        *came,
        *_unexplained(own, came),
        *_other_models(logged.others, watched.model_id),
        *(_evidently_failed(error) if evidently and error else []),
    ]
    concepts = len({concept_of(name) for name in reference.names})
    result = MonitorResult(
        ran_at=ran_at,
        since=since,
        until=until,
        model_id=watched.model_id,
        attempts=len(logged.attempts),
        scored=len(scored),
        stays=int(scored["encounter_id"].nunique()),
        findings=tuple(worst_first(summarise(findings, concepts))),
        features=_feature_rows(checked),
        scores=_scores(scored, reference, watched.threshold),
        alerts=_alerts(scored, reference, watched.threshold),
        not_scored=outputs.not_scored(logged.attempts),
        evidently=_evidently_facts(report, error),
        duration_s=round(time.monotonic() - begun, 2),
        folder=folder,
        artifacts=[folder / "monitor.html", folder / "monitor.json", *_files(report)],
        site=site,
        **(back.facts if back else {}),
    )
    write_atomically(folder / "monitor.json", _json(result))
    write_atomically(folder / "monitor.html", render_report(result, timezone))
    return result


def _checked(batch: Batch, reference: Reference, limits: Limits, watched: Watched) -> Checked:
    found: list[Checked] = []

    def check() -> list[Finding]:
        mix_ups = unit_mix_ups(reference)
        found.append(check_inputs(batch, reference, limits=limits, mix_ups=mix_ups, derived=watched.derived))
        return found[0].findings

    findings = safely("inputs", check)
    return found[0] if found else Checked(findings, None, [])


def _unexplained(findings: Sequence[Finding], came: Sequence[Finding]) -> list[Finding]:
    """What the inputs show of concepts whose arrivals have not told it already, nearer to the cause."""
    explained = {concept for f in came if f.severity != NOTE for concept in f.features}
    about = [{concept_of(name) for name in f.features} for f in findings]
    return [f for f, what in zip(findings, about, strict=True) if not what or not what <= explained]


def unit_mix_ups(reference: Reference) -> dict[str, tuple[MixUp, ...]]:
    """The classic unit mistakes of the concepts a model reads, from the unit table."""
    known = loader.concepts()
    rows: dict[str, list[tuple[str, str, float, float]]] = {}
    for concept in {concept_of(name) for name in reference.names} & set(known):
        distinct = {factors: unit for unit, factors in reversed(loader.conversions(concept).items())}
        rows[concept] = [(unit, known[concept].unit, *factors) for factors, unit in distinct.items()]
    return mix_ups_from_table(rows)


def _period(
    store: Store,
    settings: Settings,
    bundle: Bundle,
    since: str | datetime | None,
    until: str | datetime | None,
) -> tuple[datetime, datetime]:
    closes = _instant(until, settings.timezone)
    if closes is None and settings.clock == "replay":
        with store.read() as connection:
            newest = scores.last(connection, bundle.model_id)
        closes = None if newest is None else datetime.fromtimestamp(newest / 1e6 + 1, UTC)
    closes = closes or datetime.now(UTC)
    opens = _instant(since, settings.timezone) or closes - PERIOD
    if opens >= closes:
        raise DataError(f"The period from {opens:%Y-%m-%d %H:%M} to {closes:%Y-%m-%d %H:%M} UTC is empty.")
    return opens, closes


def _instant(value: str | datetime | None, timezone: str) -> datetime | None:
    if value is None:
        return None
    instant: datetime = to_utc([value], "since or until", timezone).iloc[0].to_pydatetime()
    return instant


def _batch(logged: Logged, scored: pd.DataFrame) -> Batch:
    features = logged.features
    if logged.sample is None:
        features = features.reindex(scored["prediction_id"]).reset_index(drop=True)
    return Batch.of(
        features, stay=scored["encounter_id"], time=scored["prediction_time"], unit=_units(scored)
    )


def _units(scored: pd.DataFrame) -> pd.Series:
    return scored["unit"].astype("object").fillna("").astype("str")


def _evidently(
    batch: Batch, scored: pd.DataFrame, watched: Watched, folder: Path, rng: np.random.Generator
) -> tuple[EvidentlyReport | None, str | None]:
    names = list(watched.profile["features"])
    columns = [PROBABILITY, *choose(watched.gain, names, MOST_COLUMNS)]
    current = batch.features.assign(**{PROBABILITY: scored["probability"].to_numpy(np.float64)})
    reference = reference_sample(watched.profile, REFERENCE_ROWS, rng)
    try:
        return drift_report(current, reference, columns, folder, title=watched.model_id, rng=rng), None
    except Exception as error:
        # Whatever it stumbles over next, our own findings must still be told; its text may hold values, its type not.
        return None, type(error).__name__


def reference_sample(profile: Mapping[str, Any], n: int, rng: np.random.Generator) -> pd.DataFrame:
    """A made-up reference table with the profile's margins: features and the probability.

    Features with few distinct quantiles are taken to be discrete and get none of the values in between.
    """
    matrix: npt.NDArray[np.float64] = sample(dict(profile), n, rng).astype(np.float64)
    for j, summary in enumerate(profile["features"].values()):
        steps = np.unique(summary["quantiles"])
        if 0 < len(steps) <= 12:
            nearest = np.abs(matrix[:, j, None] - steps[None, :]).argmin(axis=1)
            matrix[:, j] = np.where(np.isnan(matrix[:, j]), np.nan, steps[nearest])
    table = pd.DataFrame(matrix, columns=list(profile["features"]))
    quantiles = profile["probability"]["quantiles"]
    drawn = np.interp(rng.random(n), profile["shares"], quantiles) if quantiles else np.full(n, np.nan)
    return table.assign(**{PROBABILITY: drawn})


def _evidently_facts(report: EvidentlyReport | None, error: str | None) -> dict[str, Any]:
    if report is None:
        return {
            "columns": 0,
            "rows": 0,
            "drift": {},
            "drifted": [],
            "left_out": {},
            "html": None,
            "error": error,
        }
    return {
        "columns": len(report.drift),
        "rows": report.rows,
        "drift": {k: round(v, 4) for k, v in report.drift.items()},
        "drifted": list(report.drifted),
        "left_out": dict(report.left_out),
        "html": report.html.name if report.html else None,
        "error": error,
    }


def _evidently_failed(error: str) -> list[Finding]:
    return [
        Finding(
            kind="report_failed",
            severity=WATCH,
            what=f"Evidently's report could not be made ({error}); the findings here do not depend on it.",
            where="the monitor",
            certainty="certain",
            action="Check that the monitoring extra is installed; if it is, report the fault with the columns' types.",
        )
    ]


def _other_models(others: int, model_id: str) -> list[Finding]:
    if not others:
        return []
    return [
        Finding(
            kind="other_models",
            severity=NOTE,
            what=f"{others:,} predictions of the period were made by other bundles than {model_id} and are not "
            "looked at here.",
            where="prediction log",
            certainty="certain",
            action="Expected after a change of model. Otherwise find out who serves the other bundle.",
        )
    ]


def _feature_rows(checked: Checked) -> tuple[dict[str, Any], ...]:
    if checked.table is None:
        return ()
    rows = checked.table.round(4).to_dict("records")
    return tuple(
        {str(k): v for k, v in row.items()} | {"bins_now": now, "bins_reference": then}
        for row, (now, then) in zip(rows, checked.bins, strict=True)
    )


def _scores(scored: pd.DataFrame, reference: Reference, threshold: float) -> dict[str, Any]:
    probability = scored["probability"].to_numpy(np.float64)
    share = outputs.score_histogram(probability, reference)
    return {
        "edges": reference.edges.tolist(),
        "reference": reference.share.tolist(),
        "now": share.tolist(),
        "mean_reference": reference.mean,
        "mean_now": float(probability.mean()) if len(probability) else None,
        "psi": outputs.score_stability(scored, reference),
        "threshold": threshold,
    }


def _alerts(scored: pd.DataFrame, reference: Reference, threshold: float) -> dict[str, Any]:
    usual = reference.share_at_or_above(threshold)
    return {
        "count": int((scored["probability"] >= threshold).sum()),
        "expected": usual * len(scored),
        "usual_share": usual,
        "pages": int(scored["page"].sum()),
        "volume": outputs.volume_by_period(scored, threshold),
    }


def _files(report: EvidentlyReport | None) -> list[Path]:
    return [p for p in (report.html, report.json) if p] if report else []


def _json(result: MonitorResult) -> str:
    return json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n"


def _beat(home: Path, started: datetime, status: str, **more: str) -> None:
    finished = None if status == "running" else datetime.now(UTC).isoformat()
    beat = {"started": started.isoformat(), "finished": finished, "status": status, **more}
    write_atomically(home / HEARTBEAT, json.dumps(beat) + "\n")


def _prune(runs: Path) -> None:
    for old in sorted(p for p in runs.iterdir() if p.is_dir())[:-KEEP_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
