"""Errors that hand over the cure.

Every message says what was expected, what was found and what to do next. It names columns, concepts and counts,
never a patient, a value of a patient or a secret: messages travel further than data.
"""

from __future__ import annotations


class WardcastError(Exception):
    """Anything the user can mend; the command line prints it without a traceback."""


class DataError(WardcastError):
    """The data cannot be used as they are."""


class SpecError(WardcastError):
    """A spec, a concept table or a bundle contradicts itself.

    Attributes
    ----------
    code : str
        What a service says that cannot score because of it.
    """

    code = "model_unusable"


class BundleMissing(SpecError):
    """There is no bundle where one was named."""

    code = "model_missing"


class BundleChanged(SpecError):
    """A bundle's files are not those that were written with it."""

    code = "model_hash_mismatch"


class SchemaMismatch(SpecError):
    """A bundle's model reads other features than its spec declares, or this version does not know its format."""

    code = "schema_mismatch"


class ConfigError(WardcastError):
    """A setting is missing or unsafe."""
