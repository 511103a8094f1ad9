"""What is said, wherever results are shown, of a model that is unlike its original."""

from __future__ import annotations

from zoopress.results import Quality, Report

MARK = "⚠"
MEANING = f"{MARK} unlike the original"


def unlike_words(report: Report) -> str:
    """Say that a model is unlike its original, by what, and since when; empty if it is like it."""
    judged = report.judged
    if judged[-1].like_original:
        inherited = report.inherited_problem
        return f"UNLIKE THE FIRST ORIGINAL: what it was made of is so: {inherited}." * bool(
            inherited
        )
    since = len(judged)
    while since > 1 and not judged[since - 2].like_original:
        since -= 1
    words = f"UNLIKE THE ORIGINAL: {judged[-1].problem}"
    if len(judged) > 1:
        words += f"; so since stage {since} ({report.stages[since - 1].technique})"
    return f"{words}."


def unlike_remedy(quality: Quality) -> str:
    """Say what to do about it."""
    if quality.like_original:
        return "Start from a source that is like its original."
    names = " and ".join(dict.fromkeys(quality.targets))
    return (
        "Use milder settings, or add a 'recovery' to the stage. If it is meant to be so, say in "
        f"the recipe how far it may go: targets: {names}."
    )
