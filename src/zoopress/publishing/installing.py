"""How a page says to install what its model needs: from where that really is.

A name alone is taken from pip's index, where it may be nothing, or a stranger's package. So a page
has it only where an installer took it from an index here, or the publisher says so.
"""

from __future__ import annotations

import re

from zoopress.artifacts.requirements import OURS, Requirement, packages_of
from zoopress.errors import InputError
from zoopress.provenance import install_place
from zoopress.reports.markdown import code, fence, text
from zoopress.results import Report

_EXTRAS = {"transformers": "transformers", "sentence_encoder": "transformers", "timm": "timm"}
"""What zoopress needs for each architecture."""
_PLACE = re.compile(
    r"(?:[a-z]+\+)?(?:https?|ssh)://[^\s'\"`$\\\\]+|zoopress(?:[<>=!~]=?[0-9A-Za-z.*+!-]+)?"
)


def installing(report: Report, repo_id: str | None, install: str | None) -> list[dict[str, str]]:
    """Return what to install before loading, as a title and a block of code.

    Args:
        report: says what loading requires.
        repo_id: where it is published; without it, the page is that of a folder, which is the same
            on every machine and so names no place.
        install: what pip takes to install zoopress; None for where it came from on this machine.

    Raises:
        InputError: if `install` is nothing that pip takes.
    """
    extra = _EXTRAS.get(str(report.loads_as.get("architecture")))
    needed = [Requirement(**each) for each in report.loads_as.get("requires", [])]
    ours = _checked(install) if install is not None else install_place(OURS) if repo_id else None
    lines, words = [], []
    if ours is None:
        words.append(_ours_in_words(report, extra))
    else:
        lines.append(_quoted(OURS, extra, ours))
    for each in needed:
        place = install_place(each.distribution) if repo_id else None
        if place is None:
            words.append(text(f"{each.distribution} {each.version} or newer"))
        elif place == each.distribution:
            lines += packages_of([each])
        else:
            lines.append(_quoted(each.distribution, None, place))
    ways = []
    if words:
        title = f"It needs {' and '.join(words)}, from where its authors publish it."
        if not lines:
            ways.append({"title": title, "code": ""})
        else:
            ways.append({"title": title, "code": fence(_pip(lines), "bash")})
    elif lines:
        ways.append({"title": "", "code": fence(_pip(lines), "bash")})
    return ways


def _pip(packages: list[str]) -> str:
    return f"pip install {' '.join(packages)}"


def _quoted(name: str, extra: str | None, place: str) -> str:
    """Return a distribution at a place, as a shell takes it."""
    wanted = f"{name}[{extra}]" if extra else name
    if "://" in place:
        return f"'{wanted} @ {place}'"
    requirement = wanted + place.removeprefix(name)
    return requirement if requirement == name else f"'{requirement}'"


def _ours_in_words(report: Report, extra: str | None) -> str:
    version = str(report.made_with.get("zoopress") or "")
    words = text(f"zoopress {version}".strip())
    return f"{words} with its extra {code(extra)}" if extra else words


def _checked(install: str) -> str:
    if not _PLACE.fullmatch(install):
        raise InputError(
            f"{install!r} is nothing that installs zoopress. Give an address, such as "
            "'git+https://host/owner/zoopress' or 'https://host/zoopress-0.1.0-py3-none-any.whl', "
            "or 'zoopress' if that is on the index that everybody has."
        )
    return install
