"""The mapping of a site's own observations, checked; :mod:`features.sources.observations` begins with an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from features.concepts import loader
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS
from features.sources.vocabulary import target, targets, toml

TABLES: Final = ("shape", "system", "columns", "codes", "units", "values", "encounters")
LONG: Final = ("subject_id", "time", "code", "value")
WIDE: Final = ("subject_id", "time")
OPTIONAL: Final = ("encounter_id", "available_time", "source_id", "status")
ONLY_LONG: Final = ("unit",)
OF_STAYS: Final = (*ENCOUNTER_COLUMNS, "hospital_discharge_time")


@dataclass(frozen=True)
class Layout:
    """A mapping, checked: see the head of :mod:`features.sources.observations`.

    Attributes
    ----------
    wide : bool
    columns : ours to theirs
    codes : their code (long) or column (wide) to ``(code, concept, unit when none is written)``
    units : their unit to UCUM
    system : of codes that name none
    stays : file of the table of stays, None without one
    stay_columns : ours to theirs, of that table
    """

    wide: bool
    columns: Mapping[str, str]
    codes: Mapping[str, tuple[str, str, str]]
    units: Mapping[str, str] = field(default_factory=dict)
    system: str = "LOCAL"
    stays: Path | None = None
    stay_columns: Mapping[str, str] = field(default_factory=dict)


def layout(mapping: Path | Mapping[str, Any] | None, folder: Path) -> Layout:
    """Read and check a mapping; ``folder`` is where relative paths of a mapping without a file begin.

    Raises
    ------
    DataError
        There is none, it is not TOML, it lacks a key or holds an unknown one, or leads to an unknown concept.
    """
    if mapping is None:
        raise DataError(
            "Observations of a site's own need a mapping, a TOML file that says what its columns mean. "
            "features/sources/observations.py begins with an example."
        )
    said = toml(mapping)
    _known(said, TABLES, "The mapping")
    shape = said.get("shape", "long")
    if shape not in ("long", "wide"):
        raise DataError(f"The mapping has shape {shape!r}. Write long or wide.")
    wide = shape == "wide"
    columns = _section(said, "columns")
    _known(columns, (*WIDE, *OPTIONAL) if wide else (*LONG, *OPTIONAL, *ONLY_LONG), "[columns]")
    missing = [c for c in (WIDE if wide else LONG) if c not in columns]
    if "encounters" not in said and "encounter_id" not in columns:
        missing.append("encounter_id")
    if missing:
        raise DataError(
            f'[columns] of the mapping lacks {", ".join(missing)}. Add lines such as time = "taken".'
        )
    system = said.get("system", "LOCAL")
    codes = _columns_of_values(said) if wide else _codes(said, str(system))
    stays, stay_columns = _stays_section(said, mapping, folder)
    return Layout(wide, columns, codes, _section(said, "units"), str(system), stays, stay_columns)


def _section(said: Mapping[str, Any], name: str) -> dict[str, str]:
    found = said.get(name, {})
    if not isinstance(found, Mapping) or not all(isinstance(v, str) for v in found.values()):
        raise DataError(f'[{name}] of the mapping must hold lines such as ours = "theirs".')
    return {str(k): v for k, v in found.items()}


def _known(said: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    extra = sorted(set(said) - set(known))
    if extra:
        raise DataError(f"{where} holds {', '.join(map(str, extra))}; known are {', '.join(known)}.")


def _codes(said: Mapping[str, Any], system: str) -> dict[str, tuple[str, str, str]]:
    """Their code to the code to keep, its concept and unit; a code of the tables gives way to the site's word."""
    found = {}
    for theirs, (concept, unit) in targets(said).items():
        code = theirs if "//" in theirs else f"{system}//{theirs}"
        found[theirs] = (f"WARDCAST//{concept}" if code in loader.codes() else code), concept, unit
    return found


def _columns_of_values(said: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    values = said.get("values")
    if not isinstance(values, Mapping) or not values:
        raise DataError(
            'A wide mapping needs [values."their column"] with concept or code for each column to read.'
        )
    return {str(c): (f"LOCAL//{c}", *target(about, f"[values.{c}]")) for c, about in values.items()}


def _stays_section(
    said: Mapping[str, Any], mapping: Path | Mapping[str, Any], folder: Path
) -> tuple[Path | None, dict[str, str]]:
    about = said.get("encounters")
    if about is None:
        return None, {}
    if not isinstance(about, Mapping) or not isinstance(about.get("path"), str):
        raise DataError('[encounters] of the mapping lacks path. Write path = "stays.csv".')
    _known(about, ("path", "columns"), "[encounters]")
    columns = _section(about, "columns")
    _known(columns, OF_STAYS, "[encounters.columns]")
    missing = [c for c in ("encounter_id", "subject_id") if c not in columns]
    if missing:
        raise DataError(f"[encounters.columns] of the mapping lacks {', '.join(missing)}.")
    roots = [folder] if isinstance(mapping, Mapping) else [Path(mapping).parent, folder]
    found = [root / about["path"] for root in roots if (root / about["path"]).is_file()]
    if not found:
        raise DataError(f"No table of stays at {about['path']}, looked for beside the mapping and the data.")
    return found[0], columns
