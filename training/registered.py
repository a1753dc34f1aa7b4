"""What MLflow runs to load a registered bundle: models from code, no pickle.

It needs wardcast installed. The service does not come this way: it reads the bundle folder itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.bundle import Bundle
from training.tracking import serve_as_model


class RegisteredBundle:
    """Calibrated probabilities from a table of features."""

    bundle: Bundle

    def load_context(self, context: Any) -> None:
        """Load the bundle and check its hashes."""
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One probability a row; columns are looked up by name."""
        matrix = model_input[list(self.bundle.feature_names)].to_numpy(dtype=np.float32)
        return pd.DataFrame({"probability": self.bundle.score(matrix)})


serve_as_model(RegisteredBundle)
