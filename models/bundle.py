"""A model on disk: a folder that a person can read, and that loads without running anyone's code.

Boosters are LightGBM text, everything else JSON, TOML and Markdown. ``bundle.json`` lists every file with its SHA-256;
a folder whose files do not match is refused. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from features.errors import BundleChanged, BundleMissing, SchemaMismatch, SpecError
from models.abstention import Abstention, known_of
from models.calibration import Calibrator
from models.spec import Spec

FORMAT: Final = 1
MANIFEST: Final = "bundle.json"
REQUIRED_PARTS: Final = ("features", "reference", "evaluation", "data")

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A loaded model bundle.

    Attributes
    ----------
    folder : Path
    name, version : str
        The product, and the version its maker gave it.
    digest : str
        First twelve hex digits of the manifest's SHA-256: two bundles with one digest are the same model.
    spec : Spec
    boosters : mapping of name to Booster
        A product with one model calls it ``risk``; where several are averaged, ``risk.<member>``.
    parts : mapping of name to JSON value
        ``features`` (manifest), ``reference`` (profile for drift), ``evaluation``, ``data`` (fingerprint and
        citation), and what the product adds: ``calibrator``, ``decision``.
    card : str
        The model card, Markdown.
    """

    folder: Path
    name: str
    version: str
    digest: str
    spec: Spec
    boosters: Mapping[str, lgb.Booster]
    parts: Mapping[str, Any]
    card: str

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read a bundle and check every file against its manifest.

        Raises
        ------
        SpecError
            No manifest, another format, a file missing, changed or unlisted, or features that differ from the spec's.
        """
        manifest_bytes, manifest = _manifest(folder)
        _verify(folder, manifest["files"])
        spec = Spec.load(folder / "spec.toml")
        boosters = {
            p.stem: lgb.Booster(model_str=p.read_text()) for p in sorted((folder / "boosters").glob("*.txt"))
        }
        parts = {
            p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json")) if p.name != MANIFEST
        }
        bundle = cls(
            folder=folder,
            name=manifest["name"],
            version=manifest["version"],
            digest=hashlib.sha256(manifest_bytes).hexdigest()[:12],
            spec=spec,
            boosters=boosters,
            parts=parts,
            card=(folder / "card.md").read_text(encoding="utf-8"),
        )
        bundle._check_features()
        return bundle

    @classmethod
    def load_served(cls, folder: Path) -> Bundle:
        """Read a bundle that is to answer about patients; raises as :meth:`load`, and where it is not made for that.

        A spec with ``served = false`` makes a model for comparison only, such as one that reads how long a stay has
        lasted because its data reward it.
        """
        bundle = cls.load(folder)
        if not bundle.spec.served:
            raise SpecError(
                f"Bundle {bundle.model_id} is for comparison only: its spec says model.served = false. Serve another, "
                "such as models/sepsis/released."
            )
        return bundle

    @property
    def model_id(self) -> str:
        """What a prediction names as its maker, such as ``sepsis@1-0a1b2c3d4e5f``."""
        return f"{self.name}@{self.version}-{self.digest}"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns of the feature matrix, in order: the feature set's, then the spec's ``model.calendar``.

        A model of a table has no feature set: its spec names ``model.columns``.
        """
        columns = self.spec.section("model").get("columns")
        if columns:
            return tuple(columns)
        return (*self.spec.features.names, *self.spec.section("model").get("calendar", ()))

    @cached_property
    def made(self) -> dict[str, Any]:
        """What others made of the parts and keep as long as the bundle, by name."""
        return {}

    @cached_property
    def calibrator(self) -> Calibrator:
        """From log-odds to probability."""
        return Calibrator.from_dict(self.parts["calibrator"])

    @cached_property
    def abstention(self) -> Abstention | None:
        """When a score is indeterminate; None where that was not learned."""
        table = self.parts.get("abstention")
        return None if table is None else Abstention.from_dict(table)

    def indeterminate(self, matrix: Matrix, raw: Floats) -> Bools:
        """Rows whose score is high on a record too thin to carry it, shape (n,)."""
        rule = self.abstention
        if rule is None:
            return np.zeros(len(raw), dtype=np.bool_)
        return rule.withheld(known_of(matrix, self.feature_names, rule.quantities), raw)

    @property
    def withholds(self) -> bool:
        """Whether indeterminate scores are withheld, not only marked; the spec's ``abstention.withhold``."""
        return bool(self.spec.table.get("abstention", {}).get("withhold", False))

    @property
    def thresholds(self) -> dict[str, float]:
        """Probabilities at or above which we act: ``utility`` hour by hour, ``alert`` for the ward."""
        thresholds: dict[str, float] = self.parts["decision"]["thresholds"]
        return thresholds

    @property
    def alert_policy(self) -> dict[str, Any]:
        """Settings of :class:`models.decision.AlertPolicy`, chosen on training patients."""
        policy: dict[str, Any] = self.parts["decision"]["policy"]
        return policy

    @property
    def reference(self) -> dict[str, Any]:
        """Summaries of the training features and scores, against which drift is measured."""
        reference: dict[str, Any] = self.parts["reference"]
        return reference

    @property
    def evaluation(self) -> dict[str, Any]:
        """What was measured when the model was made, on what, with intervals."""
        evaluation: dict[str, Any] = self.parts["evaluation"]
        return evaluation

    def members(self, booster: str = "risk") -> tuple[lgb.Booster, ...]:
        """The boosters whose mean answers to a name: the one so called, or all ``<name>.<member>``, by name."""
        return tuple(b for name, b in sorted(self.boosters.items()) if name.split(".")[0] == booster)

    def gain(self, booster: str = "risk") -> dict[str, float]:
        """What each feature brought to the fit: its share of the split gain, mean over the members."""
        gains = [m.feature_importance("gain") for m in self.members(booster)]
        shares = np.mean([g / max(float(g.sum()), 1e-12) for g in gains], axis=0)
        return dict(zip(self.feature_names, shares.tolist(), strict=True))

    def raw(self, matrix: Matrix, booster: str = "risk", threads: int = 1) -> Floats:
        """Log-odds before calibration, shape (n,), the mean of the members'; the same bits for any number of threads.

        The service uses one: its rows are few and it has threads of its own.
        """
        return mean_of_members(self.members(booster), matrix, threads, raw_score=True)

    def score(self, matrix: Matrix) -> Floats:
        """Calibrated probability, shape (n,), from a matrix with :attr:`feature_names` as columns."""
        return self.calibrator.apply(self.raw(matrix))

    def contributions(self, matrix: Matrix, booster: str = "risk") -> Floats:
        """Exact TreeSHAP in log-odds, shape (n, n_features + 1); the last column is the base value.

        The mean of the members' contributions. Rows sum to :meth:`raw` (to rounding): reasons explain the score
        before calibration.
        """
        return mean_of_members(self.members(booster), matrix, 1, pred_contrib=True)

    def _check_features(self) -> None:
        expected = list(self.feature_names)
        for name, booster in self.boosters.items():
            missing = [f for f in booster.feature_name() if f not in set(expected)]
            if missing or (name.split(".")[0] == "risk" and booster.feature_name() != expected):
                some = ", ".join(missing[:3]) or "their order"
                raise SchemaMismatch(
                    f"Bundle {self.name}@{self.version}: booster {name!r} and spec.toml disagree on "
                    f"features ({some}). The bundle was made by another version; train it again."
                )


def mean_of_members(members: Sequence[lgb.Booster], matrix: Matrix, threads: int, **what: bool) -> Floats:
    """Mean over boosters of what each predicts: ``raw_score`` or ``pred_contrib``."""
    values = [np.asarray(m.predict(matrix, num_threads=threads, **what), dtype=np.float64) for m in members]
    return values[0] if len(values) == 1 else np.asarray(np.mean(values, axis=0), dtype=np.float64)


def write_bundle(
    folder: Path,
    *,
    name: str,
    version: str,
    spec_text: str,
    boosters: Mapping[str, lgb.Booster],
    parts: Mapping[str, Any],
    card: str,
) -> Bundle:
    """Write a bundle into an empty or new folder, and load it again as proof that it can be.

    Raises
    ------
    SpecError
        A required part is missing, or the folder already holds other files.
    """
    absent = [p for p in REQUIRED_PARTS if p not in parts]
    if absent:
        raise SpecError(
            f"A bundle needs the parts {', '.join(REQUIRED_PARTS)}; missing: {', '.join(absent)}."
        )
    if folder.exists() and any(folder.iterdir()):
        raise SpecError(f"{folder} is not empty. Bundles are written once; choose a new folder.")
    (folder / "boosters").mkdir(parents=True)
    texts = {
        f"boosters/{key}.txt": without_extremes(booster.model_to_string())
        for key, booster in boosters.items()
    }
    texts |= {f"{key}.json": dump_json(value) for key, value in parts.items()}
    texts |= {"spec.toml": spec_text, "card.md": card}
    for path, text in texts.items():
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    files = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in sorted(texts)}
    manifest = {"format": FORMAT, "name": name, "version": version, "files": files}
    (folder / MANIFEST).write_text(dump_json(manifest), encoding="utf-8", newline="\n")
    return Bundle.load(folder)


def without_extremes(text: str) -> str:
    """A booster's text without the range of each feature, which is the value of a single patient; nothing reads it.

    LightGBM writes ``feature_infos=[min:max] ...`` for information only: predictions and TreeSHAP stay the same bits.
    """
    head, mark, rest = text.partition("\nfeature_infos=")
    infos, newline, trees = rest.partition("\n")
    return head + mark + re.sub(r"\[[^\]\s]*\]", "none", infos) + newline + trees


def dump_json(value: object) -> str:
    """JSON that reads well, compares well, and reads back to the same numbers."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _manifest(folder: Path) -> tuple[bytes, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleMissing(
            f"No model bundle at {folder}: {MANIFEST} is not there. "
            "Released bundles are models/<product>/released; `wardcast train` makes new ones."
        )
    content = path.read_bytes()
    manifest: dict[str, Any] = json.loads(content)
    if manifest.get("format") != FORMAT:
        raise SchemaMismatch(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}.")
    return content, manifest


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    if present != set(files):
        odd = ", ".join(sorted(present ^ set(files))[:3])
        raise BundleChanged(
            f"Bundle at {folder} has missing or unlisted files: {odd}. Restore it from its source."
        )
    for path, digest in files.items():
        if hashlib.sha256((folder / path).read_bytes()).hexdigest() != digest:
            raise BundleChanged(
                f"Bundle file {path} was changed after the bundle was made. Restore it from its source."
            )
