"""What the demo trains: both products on the simulated hospital, beside the released sepsis model.

A program of its own (``python -m training.demo``), so that it can train while the service is busy with the stream.
Progress goes to standard error; standard output has a line about each model.
"""

from __future__ import annotations

from pathlib import Path

from training import admissions, sepsis, tracking

RELEASED_SEPSIS = Path(__file__).resolve().parent.parent / "models" / "sepsis" / "released"


def main() -> None:
    """Record the released sepsis model, then train both products on simulated patients.

    What is trained here is a challenger: it shows the way, not skill. The released model learned from real patients.
    """
    tracking.log_bundle(
        RELEASED_SEPSIS, run_name="released", alias="released", tags={"origin": "released bundle"}
    )
    for product in (sepsis, admissions):
        result = product.train("synthetic", None, spec=None, output=None, register=True, threads=1)
        print(f"Simulated patients only: {result.headline}", flush=True)


if __name__ == "__main__":
    main()
