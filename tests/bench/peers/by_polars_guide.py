"""polars in the shape that its user guide shows: windows by ``group_by_dynamic``, laid on the grid by left joins.

Nothing is known about the order of the file, so each concept is sorted; the latest value comes from ``join_asof``.
"""

from __future__ import annotations

from _measure import Work, Workload, main


def prepare(workload: Workload) -> Work:
    import polars as pl

    value, keys = pl.col("value"), ["subject_id", "time"]
    formulas = {
        "count": pl.len(), "min": value.min(), "max": value.max(), "mean": value.mean(), "sum": value.sum(),
    }  # fmt: skip
    rows = pl.read_parquet(workload.rows, columns=["subject_id", "prediction_time"])
    rows = rows.rename({"prediction_time": "time"})

    def latest(events: pl.LazyFrame, concept: str) -> pl.LazyFrame:
        known = events.select("subject_id", "time", pl.col("value").alias(f"{concept}__last"), seen="time")
        found = rows.lazy().sort(keys).join_asof(known, on="time", by="subject_id", check_sortedness=False)
        age = (pl.col("time") - pl.col("seen")).dt.total_microseconds() / 3.6e9
        return found.with_columns(age.alias(f"{concept}__hours_since_last")).drop("seen")

    def window(events: pl.LazyFrame, concept: str, h: int) -> pl.LazyFrame:
        span = {"every": "1h", "period": f"{h}h", "offset": f"-{h}h", "closed": "right", "label": "right"}
        return events.group_by_dynamic("time", **span, group_by="subject_id").agg(
            formulas[s].alias(f"{concept}__{s}_{h}h") for s in workload.statistics
        )

    def work() -> object:
        table = rows.lazy()
        facts = pl.scan_parquet(workload.events).select(
            "subject_id", "time", pl.col("concept").cast(pl.String), value="numeric_value"
        )
        for concept in workload.concepts:
            mine = (
                facts.filter((pl.col("concept") == concept) & value.is_not_nan()).drop("concept").sort(keys)
            )
            table = table.join(latest(mine, concept), on=keys, how="left", maintain_order="left")
            for h in workload.lookbacks:
                table = table.join(window(mine, concept, h), on=keys, how="left", maintain_order="left")
        counts = pl.selectors.contains("__count_")
        return table.with_columns(counts.fill_null(0)).drop(keys).cast(pl.Float32).collect().to_numpy()

    return work


if __name__ == "__main__":
    main(prepare)
