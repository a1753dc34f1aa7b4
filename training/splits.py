"""Who is trained on and who is tested: whole patients, never rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import DataError

Ints = npt.NDArray[np.int64]


def patient_folds(
    site: npt.NDArray[np.object_],
    septic: npt.NDArray[np.bool_],
    hours: Ints,
    folds: int,
    rng: np.random.Generator,
) -> Ints:
    """Deal patients into folds that are alike in hospital, outcome and length of stay.

    Patients are sorted by site, outcome and length (ties at random) and dealt out in blocks of ``folds``, each block in
    random order: every fold gets one of each block.

    Parameters
    ----------
    site, septic, hours : shape (n_patients,)
        ``hours`` is the number of rows.

    Returns
    -------
    Fold of each patient, 0 to ``folds - 1``, shape (n_patients,).

    Raises
    ------
    DataError
        Fewer septic, or fewer other, patients than folds: a fold would have one outcome only.
    """
    fewest = min(int(septic.sum()), int((~septic).sum()))
    if fewest < folds:
        raise DataError(
            f"{folds} folds need {folds} patients with and {folds} without sepsis, got {fewest} of one. "
            "Give more patients, or declare fewer folds in [training]."
        )
    table = pd.DataFrame({"site": site, "septic": septic, "hours": hours, "tie": rng.random(len(hours))})
    order = table.sort_values(["site", "septic", "hours", "tie"]).index.to_numpy()
    dealt = np.concatenate([rng.permutation(folds) for _ in range(-(-len(order) // folds))])[: len(order)]
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = dealt
    return fold
