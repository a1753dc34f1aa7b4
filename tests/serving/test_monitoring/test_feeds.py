"""Feeds that stop, thin out, swell, come late or cannot be used; units that change: five made-up weeks of two wards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import nbinom

from features.clock import HOUR_US
from serving.monitoring.feeds import Expected, Looked, expected, look, wandering_probability
from serving.monitoring.inputs import MixUp
from serving.monitoring.ledger import FACTS, Ledger, bin_of, middle_of, tell_apart
from serving.monitoring.units import check_units

WEEKS = 4
DAYS = 7 * WEEKS
MONDAY_H = 490_992  # 2026-01-05T00:00Z in hours since 1970, whose first day was a Thursday
RATE = {"heart_rate": 60.0, "map": 30.0, "lactate": 2.0, "creatinine": 4.0, "glucose": 8.0}
MIDDLE = {"heart_rate": 85.0, "map": 78.0, "lactate": 1.8, "creatinine": 1.0, "glucose": 130.0}
LACTATE = {
    "lactate": (MixUp("mg/dL taken for mmol/L", 9.008),),
    "glucose": (MixUp("mmol/L taken for mg/dL", 1 / 18.0156),),
}


def swing() -> np.ndarray:
    """How much comes in each hour, over the mean of the days but Sunday."""
    hour = np.arange(DAYS * 24)
    return (1 + 0.33 * np.sin((hour % 24 - 8) / 24 * 2 * np.pi)) * np.where(hour // 24 % 7 == 6, 0.5, 1.0)


def made(seed: int = 0) -> pd.DataFrame:
    """Facts of wards A and B: twice as many by day as by night, half as many on Sundays."""
    rng = np.random.default_rng(seed)
    hour, rise = np.arange(DAYS * 24), swing()
    parts = []
    for site in "AB":
        for concept, rate in RATE.items():
            n = rng.poisson(rate * rise)
            when = ((MONDAY_H + np.repeat(hour, n) + rng.random(n.sum())) * HOUR_US).astype(np.int64)
            value = MIDDLE[concept] * np.exp(rng.normal(0, 0.3, n.sum()))
            about = {"received": when, "time": when - HOUR_US // 2, "encounter": "stay", "source": "LOINC"}
            parts.append(
                pd.DataFrame(
                    about
                    | {"concept": concept, "site": site, "value": value, "aside": False}
                    | {"new": True, "same": np.arange(n.sum()) % 10 == 0, "stuck": False}
                )
            )
    return pd.concat(parts, ignore_index=True)[list(FACTS)]


@pytest.fixture(scope="module")
def facts() -> pd.DataFrame:
    return made()


@pytest.fixture(scope="module")
def ledger(facts: pd.DataFrame) -> Ledger:
    """All but the last two days."""
    return Ledger.empty(at(0)).add(facts[facts["received"] < at(DAYS - 2)], at(DAYS - 2))


@pytest.fixture(scope="module")
def watch(facts: pd.DataFrame, ledger: Ledger) -> Callable[..., Looked]:
    """A look at the end of a day of the last two, with these facts in place of the true ones."""

    def judged(broken: pd.DataFrame | None = None, day: float = DAYS) -> Looked:
        table = facts if broken is None else broken
        told = table[(table["received"].between(at(DAYS - 2), at(day) - 1)).to_numpy()]
        return look(ledger.add(told, at(day)), at(day))

    return judged


def at(day: float) -> int:
    return int((MONDAY_H + day * 24) * HOUR_US)


def kinds(looked: Looked) -> list[tuple[str, str, str]]:
    return [(f.kind, f.severity, f.where) for f in looked.findings]


def test_nothing_is_said_of_weeks_like_the_others(facts):
    growing, told = Ledger.empty(at(0)), {}
    for day in range(1, DAYS + 1):
        growing = growing.add(facts[facts["received"].between(at(day - 1), at(day) - 1)], at(day))
        looked = look(growing, at(day))
        growing, told[day] = looked.ledger, [(f.kind, f.severity) for f in looked.findings]
    assert [told[day] for day in range(1, 8)] == [[("feeds_unknown", "note")]] * 7
    assert [told[day] for day in range(8, DAYS + 1)] == [[]] * (DAYS - 7)


@pytest.mark.parametrize(("minutes", "told"), [(10, False), (16, True)])
def test_a_busy_feed_is_missed_within_a_quarter_of_an_hour(watch, facts, minutes, told):
    now = DAYS - 1.4  # Saturday afternoon
    gone = (facts["concept"] == "heart_rate") & (facts["site"] == "A")
    gone &= facts["received"] >= at(now) - minutes * HOUR_US // 60
    assert bool(watch(facts[~gone], now).findings) is told


def test_a_rare_feed_is_missed_when_chance_no_longer_explains_it(watch, facts):
    stops = at(DAYS - 0.6)  # Sunday: one an hour and more
    gone = (facts["concept"] == "lactate") & (facts["site"] == "B") & (facts["received"] >= stops)
    (finding,) = watch(facts[~gone]).findings
    last = facts.loc[
        (facts["concept"] == "lactate") & (facts["site"] == "B") & (facts["received"] < stops), "received"
    ]
    assert (finding.kind, finding.where) == ("feed_down", "unit B, source LOINC")
    assert finding.since.timestamp() == pytest.approx(last.max() / 1e6)
    assert not watch(
        facts[~gone], DAYS - 0.45
    ).findings  # four hours: some five were to be expected, and e^-5 is no proof


def test_what_is_usual_is_told_apart_from_how_full_a_ward_was_while_it_was_learnt():
    """Wards that opened on the first Monday and were a third fuller in their third week: Monday is a day like others,
    Sunday half of one, and an hour that has just begun makes nobody believe that a ward is empty."""
    table, hour = made(3), np.arange(DAYS * 24)
    full = np.where(hour < 20, 0.05, np.where(hour // (7 * 24) == 2, 1.0, 0.75))
    came = table["received"].to_numpy() // HOUR_US - MONDAY_H
    table = table[np.random.default_rng(3).random(len(table)) < full[came]]
    now = at(DAYS - 1) + 14 * HOUR_US + HOUR_US // 12  # Sunday, five past two
    told = Ledger.empty(at(0)).add(table[table["received"] < now], now)
    usual = expected(told, MONDAY_H, now // HOUR_US - 24, now // HOUR_US + 1, "UTC")
    truth = np.array([RATE[concept] for _, concept, _ in told.feeds])[:, None] * 0.75 * swing()[None, :]
    truth = truth[:, : usual.mean.shape[1]]
    days, sunday, begun = slice(22 * 24, 26 * 24), slice(27 * 24, -1), slice(-1, None)
    for hours, near in (
        (days, 0.03),
        (sunday, 0.12),
        (begun, 0.12),
    ):  # three Sundays were seen, one of them fuller
        ratio = usual.mean[:, hours].sum(axis=1) / truth[:, hours].sum(axis=1)
        assert np.median(ratio) == pytest.approx(1.0, abs=near)


def test_chance_of_nothing_by_hand():
    """(1 + d M)^(-1/d) with d = 0.02: half an hour at nine an hour is M = 4.5, and 1.09^-50; two hours, 1.36^-50."""
    usual = Expected(0, np.array([[9.0, 9.0]]), np.array([1.0]), np.array([0.02]), np.array([2.0]))
    assert usual.chance_of_nothing(0, HOUR_US // 2, HOUR_US) == pytest.approx(1.09**-50)
    assert usual.chance_of_nothing(0, 0, 2 * HOUR_US) == pytest.approx(1.36**-50)


def test_wandering_counts_are_negative_binomial():
    """The library's own negative binomial: size 1 / drift, mean 20."""
    share = 50 / 70
    assert wandering_probability(5, 20, 0.02) == pytest.approx(nbinom.cdf(5, 50, share))
    assert wandering_probability(40, 20, 0.02) == pytest.approx(nbinom.sf(39, 50, share))
    assert wandering_probability(0, 0, 0.02) == 1.0


def test_all_vital_signs_silent_are_one_finding(watch, facts):
    gone = (facts["site"] == "A") & (facts["received"] >= at(DAYS) - HOUR_US)
    looked = watch(facts[~gone])
    assert ("feed_down", "alarm", "unit A, source LOINC") in kinds(looked)
    assert {site for _, site in looked.down} == {"A"}


def test_a_fifth_of_a_feed_and_a_doubled_one_are_told_with_their_start(watch, facts):
    rng = np.random.default_rng(1)
    begins = at(DAYS - 0.75)
    glucose = (facts["concept"] == "glucose") & (facts["site"] == "A") & (facts["received"] >= begins)
    pressure = facts[(facts["concept"] == "map") & (facts["received"] >= begins)]
    broken = pd.concat([facts[~(glucose & (rng.random(len(facts)) < 0.8))], pressure])
    found = {(f.kind, f.features[0], f.where[:6]): f for f in watch(broken).findings}
    assert set(found) == {
        ("feed_thin", "glucose", "unit A"),
        ("feed_flood", "map", "unit A"),
        ("feed_flood", "map", "unit B"),
    }
    for (_, concept, _), finding in found.items():
        least = (
            4 if concept == "glucose" else 2
        )  # three an hour by night: few came by chance before it thinned
        assert abs(finding.since.timestamp() * 1e6 - begins) <= least * HOUR_US


def test_an_outage_is_no_example_of_what_is_usual(watch, facts):
    gone = (facts["concept"] == "map") & (facts["received"] >= at(DAYS - 1))
    once = watch(facts[~gone])
    good = once.ledger.usable(MONDAY_H, MONDAY_H + DAYS * 24)
    hours = {f[1]: int(n) for f, n in zip(once.ledger.feeds, good.sum(axis=1), strict=True)}
    assert hours["lactate"] == DAYS * 24
    assert hours["map"] in ((DAYS - 1) * 24, (DAYS - 1) * 24 - 1)
    assert once.findings == look(once.ledger, at(DAYS)).findings


def test_set_aside_and_late_facts_are_told(watch, facts):
    today = facts["received"] >= at(DAYS - 0.5)
    here = today & (facts["site"] == "B")
    broken = facts.assign(
        aside=here & (facts["concept"] == "creatinine"),
        time=facts["time"] - np.where(today & (facts["site"] == "A"), HOUR_US, 0),
    )
    found = {f.kind: f for f in watch(broken).findings}
    assert set(found) == {"rejected_more", "clock_shifted"}
    assert found["rejected_more"].features == ("creatinine",)
    assert "60 minutes later" in found["clock_shifted"].what
    for finding in found.values():
        assert abs(finding.since.timestamp() * 1e6 - at(DAYS - 0.5)) <= HOUR_US


@pytest.mark.parametrize(
    ("concept", "factor", "share"), [("lactate", 9.008, 1.0), ("glucose", 1 / 18.0156, 0.05)]
)
def test_a_wrong_unit_is_named_with_its_site_and_start(facts, ledger, concept, factor, share):
    rng = np.random.default_rng(2)
    here = (facts["concept"] == concept) & (facts["site"] == "B") & (facts["received"] >= at(DAYS - 0.75))
    wrong = here & (rng.random(len(facts)) < share)
    broken = facts.assign(value=facts["value"] * np.where(wrong, factor, 1))
    late = facts["received"] >= at(DAYS - 2)
    (finding,) = check_units(ledger.add(broken[late], at(DAYS)), at(DAYS), LACTATE)
    assert finding.kind == ("unit_mixed" if share < 0.9 else finding.kind)
    assert LACTATE[concept][0].label in finding.what
    assert finding.where == "unit B, source LOINC"
    assert -HOUR_US <= finding.since.timestamp() * 1e6 - at(DAYS - 0.75) <= 3 * HOUR_US
    assert check_units(ledger.add(facts[late], at(DAYS)), at(DAYS), LACTATE) == []


def test_a_ledger_counts_alike_in_any_pieces_and_survives_its_file(facts, tmp_path: Path):
    whole = Ledger.empty(at(0)).add(facts, at(DAYS), 7)
    pieces = Ledger.empty(at(0))
    turn = np.random.default_rng(3).integers(0, 5, len(facts))
    for k in range(5):
        pieces = pieces.add(facts[turn == k].iloc[::-1], at(DAYS), 7)
    assert sorted(pieces.feeds) == sorted(whole.feeds)
    order = [pieces.feeds.index(f) for f in whole.feeds]
    hours = (MONDAY_H, MONDAY_H + DAYS * 24)
    assert np.array_equal(whole.counts(*hours), pieces.counts(*hours)[order])
    assert np.array_equal(whole.histogram(*hours), pieces.histogram(*hours)[order])
    assert whole.last.tolist() == pieces.last[order].tolist()
    whole.save(tmp_path / "ledger.parquet")
    again = Ledger.load(tmp_path / "ledger.parquet")
    assert (again.feeds, again.seq) == (whole.feeds, 7)
    assert look(again, at(DAYS)).findings == look(whole, at(DAYS)).findings
    (tmp_path / "ledger.parquet").write_bytes(b"not a table")
    assert Ledger.load(tmp_path / "ledger.parquet") is None


def test_values_keep_their_size_in_bins():
    values = np.array([0.0, 0.0012, 0.5, 7.4, 39.9, 1200.0, -3.2])
    assert middle_of(bin_of(values)) == pytest.approx(values, rel=0.07)


def test_one_patient_is_one_witness(facts):
    """A lactate of 9 measured five times counts once a day, whoever counted it; one of 2 is another value."""
    day = facts[facts["concept"] == "lactate"].head(6).assign(received=at(1), encounter="one")
    day = day.assign(value=[9.0, 9.1, 2.0, 9.0, 9.0, 9.0])
    assert tell_apart(day)["new"].tolist() == [True, False, True, False, False, False]
    assert tell_apart(day.tail(3), day.head(3))["new"].tolist() == [False] * 3
    assert tell_apart(day.tail(3).assign(encounter="two"), day.head(3))["new"].tolist() == [
        True,
        False,
        False,
    ]
    assert tell_apart(day.tail(3).assign(received=at(2)), day.head(3))["new"].tolist() == [True, False, False]


def test_a_value_that_repeats_itself_is_counted_from_the_second_and_stuck_from_the_thirteenth(facts):
    day = facts.head(16).assign(received=[at(1) + k for k in range(16)], encounter="one", concept="map")
    day = day.assign(value=[80.0, *[79.0] * 15])
    told = tell_apart(day)
    assert told["same"].tolist() == [False, False, *[True] * 14]
    assert told["stuck"].tolist() == [*[False] * 13, *[True] * 3]
    assert tell_apart(day.tail(3), day.head(13))["stuck"].tolist() == [True] * 3
    assert not tell_apart(day.assign(encounter=list("ab" * 8)))["stuck"].any()


@pytest.mark.parametrize(
    ("column", "few", "kind"), [("same", 10**6, "feed_frozen"), ("stuck", 4, "values_stuck")]
)
def test_new_times_with_old_values_are_told_with_place_and_start(watch, facts, column, few, kind):
    begins = at(DAYS - 0.5)
    wrong = ((facts["concept"] == "map") & (facts["site"] == "B") & (facts["received"] >= begins)).to_numpy()
    wrong = wrong & (np.cumsum(wrong) <= few)
    (finding,) = watch(facts.assign(**{column: facts[column] | wrong})).findings
    assert (finding.kind, finding.features, finding.where) == (kind, ("map",), "unit B, source LOINC")
    assert abs(finding.since.timestamp() - begins / 1e6) <= 3600
