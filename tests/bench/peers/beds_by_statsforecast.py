"""statsforecast ``AutoETS`` of daily counts: every origin fits each series anew on what was reported by then.

``python beds_by_statsforecast.py FOLDER``: ``history.parquet`` (series, stamp, value) and ``asked.json`` (origins, the
last day known; horizon, days) in; ``told.parquet`` (series, origin, target, window_h, mean, q05 … q95) out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["NIXTLA_ID_AS_COL"] = "1"

SEASON = 7
MEMORY_DAYS = 730


def main(folder: Path) -> None:
    import pandas as pd
    from statsforecast import StatsForecast
    from statsforecast.models import AutoETS

    asked = json.loads((folder / "asked.json").read_text())
    history = pd.read_parquet(folder / "history.parquet").rename(
        columns={"series": "unique_id", "stamp": "ds", "value": "y"}
    )
    began = time.process_time()
    told = []
    for origin in pd.to_datetime(asked["origins"]):
        known = history[history["ds"].between(origin - pd.Timedelta(days=MEMORY_DAYS), origin)]
        engine = StatsForecast([AutoETS(season_length=SEASON)], freq="D", n_jobs=1)
        levels = [round(200 * abs(q - 0.5)) for q in asked["quantiles"] if q > 0.5]
        made = engine.forecast(df=known, h=asked["horizon"], level=levels)
        told.append(laid_out(made, origin, asked["quantiles"]))
    pd.concat(told, ignore_index=True).to_parquet(folder / "told.parquet")
    print(json.dumps({"cpu_s": time.process_time() - began}))


def laid_out(made, origin, quantiles):
    """Nixtla's columns under our names."""
    import pandas as pd

    out = pd.DataFrame({"series": made["unique_id"], "origin": origin, "target": made["ds"], "window_h": 24})
    out["mean"] = made["AutoETS"]
    for q in quantiles:
        level = round(200 * abs(q - 0.5))
        name = f"AutoETS-{'hi' if q > 0.5 else 'lo'}-{level}" if level else "AutoETS"
        out[f"q{round(q * 100):02d}"] = made[name]
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
