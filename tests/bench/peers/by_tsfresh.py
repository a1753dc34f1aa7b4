"""tsfresh: four statistics of the last 24 hours, from hourly rows.

What differs: the hourly grid is given, the 1 h and 6 h windows and the latest value with its age are left out.
"""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import pandas as pd
    from tsfresh import extract_features
    from tsfresh.utilities.dataframe_functions import roll_time_series

    rows = pd.read_parquet(workload.rows, columns=["subject_id", "prediction_time"])
    events = pd.read_parquet(workload.events, columns=["subject_id", "time", "concept", "numeric_value"])
    events["time"] = events["time"].dt.ceil("h")
    wide = events.pivot_table("numeric_value", ["subject_id", "time"], "concept", "mean", observed=True)
    given = rows.rename(columns={"prediction_time": "time"}).merge(
        wide.reset_index(), on=["subject_id", "time"], how="left"
    )
    given[list(workload.concepts)] = given[list(workload.concepts)].ffill().fillna(0.0)
    asked = {"length": None, "minimum": None, "maximum": None, "mean": None}
    quiet = {"disable_progressbar": True, "n_jobs": 0 if workload.cores == 1 else workload.cores}

    def work() -> object:
        rolled = roll_time_series(given, "subject_id", "time", max_timeshift=23, **quiet)
        rolled = rolled.drop(columns="subject_id")
        return extract_features(
            rolled, column_id="id", column_sort="time", default_fc_parameters=asked, **quiet
        )

    return work


if __name__ == "__main__":
    main(prepare)
