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
    """A spec, a concept table or a bundle contradicts itself."""


class ConfigError(WardcastError):
    """A setting is missing or unsafe."""
