"""Which registered model should serve: an alias, with the reason it was given."""

from __future__ import annotations

from features.errors import ConfigError
from training import tracking


def promote(name: str, reason: str, *, source: str = "challenger", target: str = "champion") -> str:
    """Make the model behind one alias the one behind another.

    Parameters
    ----------
    name : str
        The product, such as ``sepsis``.
    reason : str
        Why, in a sentence; it is kept with the version.

    Returns
    -------
    The version that was promoted.

    Raises
    ------
    ConfigError
        There is no model behind the source alias, or no reason was given.
    """
    if not reason.strip():
        raise ConfigError("A promotion needs a reason. Say in a sentence why this model should serve.")
    version = tracking.version_of(name, source)
    if version is None:
        raise ConfigError(f"No {source} of {name} is registered. Train one first: wardcast train {name}.")
    tracking.set_alias(name, version, target, reason)
    return version
