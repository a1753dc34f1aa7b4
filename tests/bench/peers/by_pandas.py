"""pandas, the plain way: lay the grid in among the events and roll over each patient."""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import numpy as np
    import pandas as pd

    statistics = list(workload.statistics)
    rows = pd.read_parquet(workload.rows, columns=["subject_id", "prediction_time"])
    grid = rows.assign(time=rows["prediction_time"], row=np.arange(len(rows)), value=np.nan)
    grid["seen"] = pd.Series(pd.NaT, index=grid.index, dtype=rows["prediction_time"].dtype)
    width = len(workload.concepts) * (2 + len(statistics) * len(workload.lookbacks))

    def work() -> object:
        events = pd.read_parquet(
            workload.events, columns=["subject_id", "time", "concept", "numeric_value"]
        ).rename(columns={"numeric_value": "value"})
        events = events.dropna(subset="value")
        out = np.empty((len(rows), width), np.float32)
        column = 0
        for concept in workload.concepts:
            mine = events.loc[events["concept"] == concept, ["subject_id", "time", "value"]]
            both = pd.concat([mine.assign(seen=mine["time"], row=-1), grid[[*mine.columns, "seen", "row"]]])
            both = both.sort_values(["subject_id", "time", "row"], kind="stable").set_index("time")
            asked = (both["row"] >= 0).to_numpy()
            place = both["row"].to_numpy()[asked]
            each = both.groupby("subject_id")
            latest = each[["value", "seen"]].ffill()[asked]
            out[place, column] = latest["value"]
            out[place, column + 1] = (latest.index - pd.DatetimeIndex(latest["seen"])) / pd.Timedelta("1h")
            column += 2
            for h in workload.lookbacks:
                rolled = each["value"].rolling(f"{h}h", closed="right", min_periods=1).agg(statistics)[asked]
                out[place, column : column + len(statistics)] = rolled.to_numpy()
                if "count" in statistics:
                    counts = column + statistics.index("count")
                    out[place, counts] = np.nan_to_num(out[place, counts])
                column += len(statistics)
        return out

    return work


if __name__ == "__main__":
    main(prepare)
