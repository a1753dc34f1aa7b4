"""What the demo trains: both products on the simulated hospital, beside the released sepsis model."""

from __future__ import annotations

from pathlib import Path

from training import admissions, sepsis, tracking

RELEASED_SEPSIS = Path(__file__).resolve().parent.parent / "models" / "sepsis" / "released"


def train_demo_models() -> list[str]:
    """Train small models on simulated patients and record the released one; returns a line about each.

    The released sepsis model (real patients) becomes champion. What is trained here on simulated patients is a
    challenger: it shows the way, not skill.
    """
    tracking.log_bundle(
        RELEASED_SEPSIS, run_name="released", alias="champion", tags={"origin": "released bundle"}
    )
    challenger = sepsis.train("synthetic", None, spec=None, output=None, register=True, threads=2)
    beds = admissions.train("synthetic", None, spec=None, output=None, register=True, threads=2)
    return [challenger.headline, beds.headline]
