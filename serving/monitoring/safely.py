"""One check's fault must not keep the others from speaking."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from serving.monitoring.findings import WATCH, Finding


def safely(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check finds; where it breaks, that it did. Its text may hold values, its type not."""
    try:
        return list(check())
    except Exception as error:
        return [
            Finding(
                kind="check_failed",
                severity=WATCH,
                what=f"The check of {name} failed ({type(error).__name__}) and says nothing of this period.",
                where="the monitor",
                certainty="certain",
                action="The other findings do not depend on it. Report the fault with the data's columns and types.",
            )
        ]
