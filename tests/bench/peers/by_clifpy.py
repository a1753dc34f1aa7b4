"""clifpy ``convert_wide_to_hourly``: minimum, maximum, mean and last value in windows of 1, 6 and 24 hours.

What differs: the wide frame is given; windows tumble from the first event, so that those of 6 and 24 hours come once
in 6 and 24 hours instead of hourly; no count, no time since.
"""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import contextlib
    import io
    import logging

    import pandas as pd
    from clifpy.utils.wide_dataset import convert_wide_to_hourly

    logging.disable(logging.CRITICAL)
    events = pd.read_parquet(workload.events, columns=["subject_id", "time", "concept", "numeric_value"])
    wide = events.pivot_table("numeric_value", ["subject_id", "time"], "concept", "mean", observed=True)
    wide = wide.reset_index().rename(columns={"subject_id": "hospitalization_id", "time": "event_time"})
    wide.columns.name = None
    wide["hospitalization_id"] = wide["hospitalization_id"].astype("str").astype(object)
    wide["patient_id"] = wide["hospitalization_id"]
    wide["event_time"] = wide["event_time"].dt.tz_localize(None)
    day = wide["event_time"].dt.floor("D")
    wide["day_number"] = (day - day.groupby(wide["patient_id"]).transform("min")).dt.days + 1
    asked = {name: list(workload.concepts) for name in ("min", "max", "mean", "last")}

    def work() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return [
                convert_wide_to_hourly(wide, asked, hourly_window=h, fill_gaps=True)
                for h in workload.lookbacks
            ]

    return work


if __name__ == "__main__":
    main(prepare)
