"""The concept tables, row by row, and how they refuse to contradict themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from features.concepts import loader
from features.errors import SpecError

PHYSIONET_COLUMNS = [
    *(
        "HR",
        "O2Sat",
        "Temp",
        "SBP",
        "MAP",
        "DBP",
        "Resp",
        "EtCO2",
        "BaseExcess",
        "HCO3",
        "FiO2",
        "pH",
        "PaCO2",
    ),
    *(
        "SaO2",
        "AST",
        "BUN",
        "Alkalinephos",
        "Calcium",
        "Chloride",
        "Creatinine",
        "Bilirubin_direct",
        "Glucose",
    ),
    *(
        "Lactate",
        "Magnesium",
        "Phosphate",
        "Potassium",
        "Bilirubin_total",
        "TroponinI",
        "Hct",
        "Hgb",
        "PTT",
        "WBC",
    ),
    *("Fibrinogen", "Platelets", "Age", "Gender", "Unit1", "HospAdmTime"),
]


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Add a row to a table, as a careless edit would; every cache is emptied before and after."""
    caches = (
        loader.concepts,
        loader.codes,
        loader.conversion,
        loader.repairs,
        loader.repair,
        loader.texts,
        loader.scores,
        loader.left_out,
        loader.sentinels,
        loader.misfiled,
        loader.orders,
        loader._units,
    )
    real = loader._rows

    def add(name: str, **row: str) -> None:
        monkeypatch.setattr(loader, "_rows", lambda n: [*real(n), row] if n == name else real(n))
        for cache in caches:
            cache.cache_clear()

    yield add
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def read_all() -> None:
    """Every table through every check."""
    for read in (
        loader.concepts, loader.codes, loader.scores, loader.repairs, loader.texts, loader.left_out,
        loader.sentinels, loader.misfiled, loader.orders,
    ):  # fmt: skip
        read()
    loader.conversion("lactate", "x")


def test_every_table_reads() -> None:
    assert len(loader.concepts()) >= 114
    assert len(loader.codes()) > 1200
    assert set(loader.scores()) == {"news2", "qsofa", "sirs", "sofa", "sofa_full"}
    assert loader.repairs()
    assert loader.texts()


@pytest.mark.parametrize("column", PHYSIONET_COLUMNS)
def test_every_physionet_column_has_a_concept(column: str) -> None:
    assert f"PHYSIONET2019//{column}" in loader.codes()


def test_every_concept_is_its_own_code() -> None:
    for name in loader.concepts():
        assert loader.codes()[f"WARDCAST//{name}"].concept == name


def test_every_code_is_displayed_and_every_display_is_whole() -> None:
    for key, row in loader.codes().items():
        assert row.display or key == "PHYSIONET2019//pH", key
        assert row.display.count("[") == row.display.count("]"), key


def test_loinc_codes_carry_their_check_digit() -> None:
    # The mod 10 (Luhn) digit of the LOINC Users' Guide: it catches a mistyped code.
    for row in loader.codes().values():
        if row.system == "LOINC":
            number, check = row.code.split("-")
            doubled = [int(d) * (2 - k % 2) for k, d in enumerate(reversed(number))]
            assert -sum(d // 10 + d % 10 for d in doubled) % 10 == int(check), row.code


@pytest.mark.parametrize(
    ("concept", "unit", "value", "canonical"),
    [
        ("temperature", "[degF]", 98.6, 37.0),  # NIST SP 811
        ("temperature", "K", 310.15, 37.0),
        ("glucose", "mmol/L", 5.5, 99.1),  # ADA: 5.5 mmol/L = 99 mg/dL
        ("creatinine", "umol/L", 88.4, 1.0),  # KDIGO: 1 mg/dL = 88.4 umol/L
        ("bilirubin_total", "umol/L", 17.1, 1.0),  # 1 mg/dL = 17.1 umol/L
        ("lactate", "mg/dL", 18.0, 2.0),  # Surviving Sepsis Campaign: 2 mmol/L = 18 mg/dL
        ("calcium", "mmol/L", 2.5, 10.02),
        ("bun", "mmol/L", 7.0, 19.6),  # BUN mg/dL = urea mmol/L x 2.8
        ("magnesium", "mmol/L", 1.0, 2.43),
        ("phosphate", "mmol/L", 1.0, 3.1),
        ("hemoglobin", "g/L", 120, 12.0),
        ("hematocrit", "1", 0.42, 42.0),
        ("fio2", "%", 40, 0.4),
        ("paco2", "kPa", 5.33, 40.0),
        ("potassium", "mEq/L", 4.0, 4.0),
        ("troponin_i", "ng/L", 40, 0.04),
        ("wbc", "10*9/L", 11.2, 11.2),
        ("ast", "ukat/L", 1.0, 60.0),
    ],
)
def test_units_convert_as_the_textbooks_do(concept: str, unit: str, value: float, canonical: float) -> None:
    found = loader.conversion(concept, unit)
    assert found is not None
    assert value * found[0] + found[1] == pytest.approx(canonical, rel=2e-3)


def test_a_unit_of_another_quantity_has_no_conversion() -> None:
    assert loader.conversion("heart_rate", "mm[Hg]") is None
    assert loader.conversion("potassium", "mg/dL") is None
    assert loader.conversion("glucose", "%") is None


@pytest.mark.parametrize(
    ("concept", "unit", "value", "canonical"),
    [
        ("ionised_calcium", "mg/dL", 4.8, 1.198),  # Tietz: 4.64 to 5.28 mg/dL = 1.16 to 1.32 mmol/L
        ("ionised_calcium", "mEq/L", 2.4, 1.2),
        ("ammonia", "ug/dL", 50, 29.4),  # Tietz: x 0.587
        ("triglycerides", "mmol/L", 1.7, 150.6),  # NCEP: 150 mg/dL = 1.7 mmol/L
        ("crp", "mg/dL", 5, 50),
        ("d_dimer", "ug/mL", 0.5, 500),
        ("d_dimer", "mg/L", 0.5, 500),
        ("troponin_t", "ng/L", 14, 0.014),
        ("norepinephrine", "mcg/kg/h", 6, 0.1),
        ("norepinephrine", "mg/kg/h", 0.006, 0.1),
        ("norepinephrine", "mcgkgmin", 0.1, 0.1),
        ("vasopressin", "units/hour", 2.4, 0.04),
        ("vasopressin", "Umin", 0.04, 0.04),
        ("weight", "lb", 154, 69.85),
        ("height", "inches", 70, 177.8),
        ("temperature", "?F", 98.6, 37.0),
        ("central_venous_pressure", "cmH2O", 13.6, 10.0),
        ("rbc", "x10*12/L", 4.5, 4.5),
        ("wbc", "#/uL", 8000, 8.0),
        ("fio2", "torr", 0.5, 0.5),
        ("minute_ventilation", "mL/min", 8000, 8.0),
    ],
)
def test_the_units_that_real_data_write_convert(
    concept: str, unit: str, value: float, canonical: float
) -> None:
    found = loader.conversion(concept, unit)
    assert found is not None
    assert value * found[0] + found[1] == pytest.approx(canonical, rel=2e-3)


def test_a_pressure_of_the_airway_is_no_pressure_of_the_blood() -> None:
    assert loader.conversion("peep", "mmHg") is None
    assert loader.conversion("sbp", "cmH2O") is None


def test_bands_rise_from_minus_infinity() -> None:
    for parts in loader.scores().values():
        for part in parts:
            for component in part.components:
                assert component.starts[0] == -math.inf
                assert len(component.starts) == len(component.points)


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        ("concepts.csv", {"low": "10", "high": "5"}, "range from 10 to 5"),
        ("concepts.csv", {"concept": "lactate"}, "stands twice"),
        ("concepts.csv", {"kind": "nonsense"}, "vital, lab"),
        ("concepts.csv", {"low": "low"}, "not a number"),
        ("codes/loinc.csv", {"concept": "unheard"}, "concepts.csv lacks"),
        ("codes/loinc.csv", {"unit": "furlong"}, "Add a conversion row"),
        ("codes/loinc.csv", {"system": "LOINC", "code": "8867-4"}, "stands twice"),
        ("units.csv", {"concept": "unheard"}, "concepts.csv has no"),
        ("units.csv", {"to_unit": "mg/dL"}, "canonical unit"),
        ("units.csv", {"factor": "-1"}, "must be positive"),
        ("units.csv", {"from_unit": "%", "concept": "fio2", "to_unit": "1"}, "stands twice"),
        ("repairs.csv", {"stated": "perhaps"}, "Say yes or no"),
        ("repairs.csv", {"low": "2", "high": "9"}, "possible in it"),
        ("repairs.csv", {"assumed_unit": "furlong"}, "no conversion"),
        ("left_out.csv", {}, "stands twice, or in codes"),
        ("left_out.csv", {"code": "new", "concept": "unheard"}, "a known concept and a reason"),
        ("left_out.csv", {"code": "new", "reason": ""}, "a known concept and a reason"),
        ("sentinels.csv", {"value": "-1"}, "stands twice"),
        ("sentinels.csv", {"code": "new"}, "in no table of codes"),
        ("misfiled.csv", {"concept": "calcium"}, "with one row each"),
        ("misfiled.csv", {"means": "unheard"}, "with one row each"),
        ("misfiled.csv", {"high": "5"}, "outside the plausible range"),
        ("orders.csv", {"upper": "heart_rate"}, "two concepts of one unit"),
        ("orders.csv", {"lower": "map"}, "in one row"),
        ("scores/sirs.csv", {"from": "5"}, "beginning at -inf"),
        ("scores/sirs.csv", {"concept": "unheard"}, "Both must exist"),
        ("scores/sirs.csv", {"choice": "best"}, "first, worst"),
        ("scores/sirs.csv", {"when": "map last about 1"}, "no condition on a known concept"),
        ("scores/sirs.csv", {"when": "unheard last = 1"}, "no condition on a known concept"),
    ],
)
def test_a_careless_row_is_refused(
    rewritten: Callable[..., None], table: str, row: dict[str, str], said: str
) -> None:
    sound = {
        "concepts.csv": {"concept": "new", "label": "New", "unit": "1", "low": "0", "high": "1", "kind": "lab",
                         "available_after_min": "0", "source": "test"},
        "codes/loinc.csv": {"system": "X", "code": "1", "display": "x", "concept": "lactate", "unit": "mmol/L",
                      "source": "test"},
        "units.csv": {"concept": "lactate", "from_unit": "x", "to_unit": "mmol/L", "factor": "1", "offset": "0",
                      "source": "test"},
        "repairs.csv": {"concept": "potassium", "assumed_unit": "mmol/L", "stated": "yes", "low": "16", "high": "90",
                        "factor": "0.1", "offset": "0", "source": "test"},
        "left_out.csv": {"system": "MIMIC_CHART", "code": "1535", "display": "Potassium", "concept": "potassium",
                         "reason": "copy", "source": "test"},
        "sentinels.csv": {"system": "", "code": "", "value": "-7", "source": "test"},
        "misfiled.csv": {"concept": "potassium", "low": "0.1", "high": "0.2", "means": "sodium", "source": "test"},
        "orders.csv": {"lower": "etco2", "upper": "sbp", "source": "test"},
        "scores/sirs.csv": {"score": "sirs", "part": "new", "choice": "first", "concept": "map", "statistic": "last",
                            "from": "-inf", "points": "1", "source": "test"},
    }  # fmt: skip
    rewritten(table, **(sound[table] | row))
    with pytest.raises(SpecError, match=said):
        read_all()
