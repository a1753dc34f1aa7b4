"""meds-tab: count, sum, minimum and maximum of the rows at each prediction time, by its own commands.

What differs: no latest value, no time since, no mean; its windows end at the last event rather than at the prediction
time. Its figure holds the start of its process and the writing of its ``.npz`` files, which cannot be had without.
Release 0.2.0 leaves the ``value/*`` matrices empty (its issue 168), so only ``code/count`` holds anything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from _measure import Work, Workload, main

EVERY_CODE = "tabularization.min_code_inclusion_count=0"


def prepare(workload: Workload) -> Work:
    import polars as pl

    home = Path(tempfile.mkdtemp(prefix="meds-tab-"))
    data, labels = home / "data" / "train", home / "labels" / "train"
    data.mkdir(parents=True)
    labels.mkdir(parents=True)
    naive = pl.col("time").dt.replace_time_zone(None)
    events = pl.read_parquet(workload.events).select(
        "subject_id",
        naive,
        pl.col("concept").cast(pl.String).alias("code"),
        pl.col("numeric_value").cast(pl.Float32),
    )
    events.write_parquet(data / "0.parquet")
    rows = pl.read_parquet(workload.rows).select(
        "subject_id", pl.col("prediction_time").dt.replace_time_zone(None), boolean_value=pl.lit(False)
    )
    rows.write_parquet(labels / "0.parquet")
    sizes = ",".join(f"{h}h" for h in workload.lookbacks)
    where = [f"input_dir={home / 'data'}", f"output_dir={home / 'out'}", "do_overwrite=true"]
    asked = [f"tabularization.window_sizes=[{sizes}]", EVERY_CODE, f"input_label_dir={home / 'labels'}"]
    aggregates = "tabularization.aggs=[code/count,value/sum,value/min,value/max]"

    def call(name: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name(name)), *arguments]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])

    call("meds-tab-describe", *where)

    def work() -> object:
        call("meds-tab-tabularize-time-series", *where, *asked, aggregates)
        return sorted(home.glob("out/**/*.npz"))

    return work


if __name__ == "__main__":
    main(prepare)
