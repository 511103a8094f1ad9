"""The rules of the conformance suites: what breaks one is told which, and what to change."""

from __future__ import annotations


class ConformanceError(AssertionError):
    """A technique breaks a rule; the message says which and what to change."""


def require(condition: bool, rule: str) -> None:
    """Raise ConformanceError with a rule that is broken."""
    if not condition:
        raise ConformanceError(rule if rule.endswith(".") else f"{rule}.")
