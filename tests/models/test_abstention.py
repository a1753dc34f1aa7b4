"""A high score on a thin record is not answered; a low one is, and so is a high one on a full record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from features.errors import SpecError
from models.abstention import Abstention, known_of, laboratory

QUANTITIES = ("lactate", "creatinine", "wbc")


def test_only_a_high_score_on_a_thin_record_is_withheld():
    rule = Abstention(QUANTITIES, 1, -2.0, 0.0, 0.0)
    known = np.array([0, 1, 2, 0, 0])
    raw = np.array([-2.0, -1.0, 3.0, -2.1, np.nan])
    assert rule.withheld(known, raw).tolist() == [True, True, False, False, False]


def test_the_most_is_withheld_that_the_limits_allow():
    """100 negative rows score 0 to 99, so that 70 and above are unlike them; 100 positive ones score 100.

    Of the positive rows 5 know nothing, 5 one quantity, 90 all: k = 0 withholds 5 % of them, k = 1 would 10 %.
    """
    raw = np.append(np.arange(100.0), np.full(100, 100.0))
    label = np.repeat([0, 1], 100)
    known = np.concatenate([np.zeros(100, int), [0] * 5, [1] * 5, [3] * 90])
    known[95:100] = 3
    rule = Abstention.fit(QUANTITIES, known, raw, label)
    assert rule.fewest == 0
    # Negative rows from 69.3 on, less the five that know enough: 70 to 94.
    assert rule.withheld(known, raw).sum() == 25 + 5
    assert (rule.rows, rule.septic_rows) == (0.15, 0.05)


def test_where_no_limit_can_be_kept_nothing_is_withheld():
    raw, label = np.append(np.arange(10.0), np.full(10, 99.0)), np.repeat([0, 1], 10)
    rule = Abstention.fit(QUANTITIES, np.zeros(20, int), raw, label)
    assert rule.fewest == -1
    assert not rule.withheld(np.zeros(20, int), raw).any()


def test_what_is_known_is_counted_by_its_last_value():
    names = ("heart_rate__last", "lactate__last", "lactate__count_24h", "wbc__last")
    assert laboratory(names) == ("lactate", "wbc")
    matrix = np.array([[80, np.nan, 0, 9], [80, 2, 1, 9], [np.nan] * 4], dtype=np.float32)
    assert known_of(matrix, names, laboratory(names)).tolist() == [1, 2, 0]


def test_the_rule_survives_json_and_a_broken_one_is_named():
    rule = Abstention(QUANTITIES, 2, 0.1, 0.12, 0.03)
    assert Abstention.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(SpecError, match="abstention"):
        Abstention.from_dict({"fewest": 1})
