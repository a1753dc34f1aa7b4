"""polars as its guide would have it: ``group_by_dynamic`` for the windows, ``join_asof`` for the latest value.

The windows are whole hours long and end on whole hours, which is what ``group_by_dynamic`` can do. The file is sorted
by subject, time and value, so nothing is sorted here.
"""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import polars as pl

    f32, value = pl.Float32, pl.col("value")
    concepts, lookbacks, statistics = workload.concepts, workload.lookbacks, workload.statistics
    rows = pl.read_parquet(workload.rows, columns=["subject_id", "prediction_time"])
    rows = rows.rename({"prediction_time": "time"})
    hours = pl.col("time").to_physical() / 3.6e9
    formulas = {
        "count": pl.len(),
        "min": value.min(),
        "max": value.max(),
        "mean": value.mean(),
        "sum": value.sum(),
        "slope": pl.when(pl.col("hours").max() > pl.col("hours").min()).then(
            (pl.col("xy").sum() - pl.col("hours").mean() * value.sum())
            / (pl.col("xx").sum() - pl.col("hours").mean() * pl.col("hours").sum())
        ),
    }

    def read() -> dict[tuple[object, ...], pl.DataFrame]:
        kinds = pl.Enum(concepts)
        events = (
            pl.scan_parquet(workload.events)
            .select(
                "subject_id", "time", pl.col("concept").cast(pl.String).cast(kinds), value="numeric_value"
            )
            .filter(value.is_not_nan())
        )
        if "slope" in statistics:
            # sums of products are some five times as quick here as covariances
            events = events.with_columns(hours=hours - hours.min())
            events = events.with_columns(xy=pl.col("hours") * value, xx=pl.col("hours") ** 2)
        return events.collect().partition_by("concept", as_dict=True, include_key=False)

    def latest(events: pl.DataFrame) -> pl.DataFrame:
        known = events.select("subject_id", "time", "value", seen="time")
        found = rows.join_asof(known, on="time", by="subject_id", check_sortedness=False)
        age = (pl.col("time") - pl.col("seen")).dt.total_microseconds() / 3.6e9
        return found.select(value.cast(f32).alias("last"), age.cast(f32).alias("hours_since_last"))

    def window(events: pl.DataFrame, h: int) -> pl.DataFrame:
        span = {"every": "1h", "period": f"{h}h", "offset": f"-{h}h", "closed": "right", "label": "right"}
        cells = events.group_by_dynamic("time", **span, group_by="subject_id").agg(
            formulas[s].cast(f32).alias(s) for s in statistics
        )
        # An as-of join without tolerance is an exact one, and four times as quick as a left join on two keys.
        laid = rows.join_asof(cells, on="time", by="subject_id", tolerance="0h", check_sortedness=False)
        return laid.select(pl.col(s).fill_null(0) if s == "count" else pl.col(s) for s in statistics)

    def work() -> object:
        parts = read()
        nothing = next(iter(parts.values())).clear()
        columns: list[pl.Series] = []
        for concept in concepts:
            events = parts.get((concept,), nothing)
            columns += latest(events).get_columns()
            for h in lookbacks:
                columns += window(events, h).get_columns()
        return pl.DataFrame([c.alias(str(k)) for k, c in enumerate(columns)]).to_numpy()

    return work


if __name__ == "__main__":
    main(prepare)
