"""patientflow's patients yet to arrive: arrival rates by weekday and quarter of an hour, and one Poisson a window.

``python beds_by_patientflow.py FOLDER``: ``history.parquet`` (stamp, value: arrivals an hour) and ``asked.json``
(origins, windows_h, refit_days, memory_days, present) in; ``told.parquet`` (origin, target, window_h, mean, q05 … q95)
out. It is refitted on a schedule, on what had come by then. Printed besides: milliseconds for the number of beds that
so many patients who are present will need.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"


def main(folder: Path) -> None:
    import pandas as pd

    warnings.filterwarnings("ignore")
    asked = json.loads((folder / "asked.json").read_text())
    history = pd.read_parquet(folder / "history.parquet").set_index("stamp")["value"]
    began = time.process_time()
    told, model, fitted = [], None, None
    for origin in pd.to_datetime(asked["origins"]):
        if fitted is None or origin - fitted >= pd.Timedelta(days=asked["refit_days"]):
            model, fitted = learnt(history, origin, asked["memory_days"]), origin
        told += [one(model, origin, hours, asked["quantiles"]) for hours in asked["windows_h"]]
    spent = time.process_time() - began
    pd.DataFrame(told).to_parquet(folder / "told.parquet")
    print(json.dumps({"cpu_s": spent, "present_ms": present_ms(asked["present"])}))


def learnt(history, origin, memory_days):
    """One row an arrival, in the middle of its hour, as the library wants them."""
    import pandas as pd
    from patientflow.predictors.incoming_admission_predictors import DirectAdmissionPredictor

    known = history[(history.index < origin) & (history.index >= origin - pd.Timedelta(days=memory_days))]
    each = known.index.repeat(known.astype("int64").to_numpy()) + pd.Timedelta(minutes=30)
    model = DirectAdmissionPredictor()
    return model.fit(pd.DataFrame(index=each), yta_time_interval=timedelta(hours=1), stratify_by_weekday=True)


def one(model, origin, hours, quantiles):
    """The distribution of arrivals in the hours from an origin on."""
    import numpy as np
    import pandas as pd

    pmf = model.predict(
        prediction_time=(origin.hour, origin.minute), prediction_window=timedelta(hours=hours),
        prediction_date=origin.date(), max_value=1000,
    )["unfiltered"]["agg_proba"].to_numpy()  # fmt: skip
    cdf = np.cumsum(pmf)
    line = {"origin": origin, "target": origin + pd.Timedelta(hours=hours - 1), "window_h": hours}
    line["mean"] = float(pmf @ np.arange(len(pmf)))
    return line | {f"q{round(q * 100):02d}": int(np.searchsorted(cdf, q)) for q in quantiles}


def present_ms(probabilities):
    """Their sum over patients who are present, exact and as they approximate it, in CPU milliseconds."""
    from patientflow.aggregate import BernoulliGeneratingFunction

    took = []
    for name in ("exact_distribution", "normal_approximation"):
        began = time.process_time()
        for _ in range(3):
            getattr(BernoulliGeneratingFunction(probabilities), name)()
        took.append((time.process_time() - began) / 3 * 1000)
    return took


if __name__ == "__main__":
    main(Path(sys.argv[1]))
