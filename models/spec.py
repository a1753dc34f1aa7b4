"""What a model is meant to be: the ``spec.toml`` of a product, parsed and checked.

A spec is text that a clinician can read. It is hashed into every bundle made from it, so that features, scope and
alert rules of a running model are always those it was trained and evaluated with.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from features.errors import SpecError
from features.featureset import FeatureSet

SECTIONS = ("model", "features", "target", "scope", "training", "alerts", "abstention")


@dataclass(frozen=True)
class Spec:
    """A parsed ``spec.toml``.

    Attributes
    ----------
    text : str
        The file as written.
    table : dict
        The same, parsed. Sections a product does not need are empty.
    """

    text: str
    table: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read a spec file.

        Raises
        ------
        SpecError
            The file is absent, is not TOML, has an unknown section or lacks a name.
        """
        if not path.is_file():
            raise SpecError(
                f"No spec at {path}. A model folder keeps one, for example models/sepsis/spec.toml."
            )
        return cls.parse(path.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Parse the text of a spec; raises as :meth:`load`."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"The spec is not TOML: {error}.") from None
        unknown = sorted(set(table) - set(SECTIONS))
        if unknown:
            raise SpecError(f"Unknown spec section {', '.join(unknown)}; known are {', '.join(SECTIONS)}.")
        if "name" not in table.get("model", {}):
            raise SpecError('The spec has no model.name. Write [model] and name = "sepsis".')
        return cls(text, table)

    @property
    def name(self) -> str:
        """The product: sepsis, admissions."""
        return str(self.table["model"]["name"])

    @property
    def served(self) -> bool:
        """Whether a model of this spec may answer about patients; ``model.served``, true where it is not said."""
        return bool(self.section("model").get("served", True))

    @cached_property
    def features(self) -> FeatureSet:
        """The features the model reads, in the order of its matrix."""
        return FeatureSet.from_spec(self.section("features"))

    def section(self, name: str) -> dict[str, Any]:
        """One section of the spec, empty when it is not there."""
        section: dict[str, Any] = self.table.get(name, {})
        return section
