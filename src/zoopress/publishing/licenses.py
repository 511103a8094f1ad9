"""Which licences let a compressed model be published, and what they ask for in return.

This is a seat belt, not legal advice: it stops what is plainly not allowed, and says what most
people forget. Whoever publishes answers for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoopress.errors import HubError, nearest
from zoopress.hub.legal_files import LEGAL_FILE as LEGAL_FILE

LICENSES: dict[str, str] = {
    "apache-2.0": "Apache License 2.0",
    "mit": "MIT",
    "openrail": "OpenRAIL family",
    "bigscience-openrail-m": "BigScience OpenRAIL-M",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M",
    "bigscience-bloom-rail-1.0": "BigScience BLOOM RAIL 1.0",
    "bigcode-openrail-m": "BigCode OpenRAIL-M v1",
    "afl-3.0": "Academic Free License v3.0",
    "artistic-2.0": "Artistic License 2.0",
    "bsl-1.0": "Boost Software License 1.0",
    "bsd": "BSD family",
    "bsd-2-clause": "BSD 2-clause",
    "bsd-3-clause": "BSD 3-clause",
    "bsd-3-clause-clear": "BSD 3-clause Clear",
    "c-uda": "Computational Use of Data Agreement",
    "cc": "Creative Commons family",
    "cc0-1.0": "Creative Commons Zero v1.0 Universal",
    "cc-by-2.0": "Creative Commons Attribution 2.0",
    "cc-by-2.5": "Creative Commons Attribution 2.5",
    "cc-by-3.0": "Creative Commons Attribution 3.0",
    "cc-by-4.0": "Creative Commons Attribution 4.0",
    "cc-by-sa-3.0": "Creative Commons Attribution Share Alike 3.0",
    "cc-by-sa-4.0": "Creative Commons Attribution Share Alike 4.0",
    "cc-by-nc-2.0": "Creative Commons Attribution Non Commercial 2.0",
    "cc-by-nc-3.0": "Creative Commons Attribution Non Commercial 3.0",
    "cc-by-nc-4.0": "Creative Commons Attribution Non Commercial 4.0",
    "cc-by-nd-4.0": "Creative Commons Attribution No Derivatives 4.0",
    "cc-by-nc-nd-3.0": "Creative Commons Attribution Non Commercial No Derivatives 3.0",
    "cc-by-nc-nd-4.0": "Creative Commons Attribution Non Commercial No Derivatives 4.0",
    "cc-by-nc-sa-2.0": "Creative Commons Attribution Non Commercial Share Alike 2.0",
    "cc-by-nc-sa-3.0": "Creative Commons Attribution Non Commercial Share Alike 3.0",
    "cc-by-nc-sa-4.0": "Creative Commons Attribution Non Commercial Share Alike 4.0",
    "cdla-sharing-1.0": "Community Data License Agreement, Sharing 1.0",
    "cdla-permissive-1.0": "Community Data License Agreement, Permissive 1.0",
    "cdla-permissive-2.0": "Community Data License Agreement, Permissive 2.0",
    "wtfpl": "WTFPL",
    "ecl-2.0": "Educational Community License v2.0",
    "epl-1.0": "Eclipse Public License 1.0",
    "epl-2.0": "Eclipse Public License 2.0",
    "etalab-2.0": "Etalab Open License 2.0",
    "eupl-1.1": "European Union Public License 1.1",
    "eupl-1.2": "European Union Public License 1.2",
    "agpl-3.0": "GNU Affero General Public License v3.0",
    "gfdl": "GNU Free Documentation License family",
    "gpl": "GNU General Public License family",
    "gpl-2.0": "GNU General Public License v2.0",
    "gpl-3.0": "GNU General Public License v3.0",
    "lgpl": "GNU Lesser General Public License family",
    "lgpl-2.1": "GNU Lesser General Public License v2.1",
    "lgpl-3.0": "GNU Lesser General Public License v3.0",
    "isc": "ISC",
    "h-research": "h-research",
    "intel-research": "intel-research",
    "lppl-1.3c": "LaTeX Project Public License v1.3c",
    "ms-pl": "Microsoft Public License",
    "apple-ascl": "Apple Sample Code License",
    "apple-amlr": "Apple Machine Learning Research Model License Agreement",
    "mpl-2.0": "Mozilla Public License 2.0",
    "odc-by": "Open Data Commons Attribution License",
    "odbl": "Open Database License",
    "openmdw-1.0": "OpenMDW 1.0",
    "openmdw-1.1": "OpenMDW 1.1",
    "openrail++": "Open Rail++-M License",
    "osl-3.0": "Open Software License 3.0",
    "postgresql": "PostgreSQL License",
    "ofl-1.1": "SIL Open Font License 1.1",
    "ncsa": "University of Illinois/NCSA Open Source License",
    "unlicense": "The Unlicense",
    "zlib": "zlib License",
    "pddl": "Open Data Commons Public Domain Dedication and License",
    "lgpl-lr": "Lesser General Public License For Linguistic Resources",
    "deepfloyd-if-license": "DeepFloyd IF Research License Agreement",
    "fair-noncommercial-research-license": "FAIR Noncommercial Research License",
    "llama2": "Llama 2 Community License Agreement",
    "llama3": "Llama 3 Community License Agreement",
    "llama3.1": "Llama 3.1 Community License Agreement",
    "llama3.2": "Llama 3.2 Community License Agreement",
    "llama3.3": "Llama 3.3 Community License Agreement",
    "llama4": "Llama 4 Community License Agreement",
    "grok2-community": "Grok 2 Community License Agreement",
    "gemma": "Gemma Terms of Use",
    "unknown": "unknown",
    "other": "other",
}
"""The identifiers that the Hub accepts, each with its name.

Sources: https://huggingface.co/docs/hub/repositories-licenses, and the list in the Hub's own
refusal of any other ("license" must be one of […]), which is longer than that page.
"""

_NO_DERIVATIVES = frozenset({"cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"})
# Whether their terms, written for one model or company, let others publish derivatives was not
# verified; so someone has to read them.
_TO_BE_READ = frozenset({"h-research", "intel-research", "grok2-community"})
# Besides Creative Commons' own, for which a link does.
_NO_TEXT = frozenset({"unknown", "cc", "unlicense", "wtfpl", "pddl"})
_RESEARCH_ONLY = frozenset(
    {
        "apple-amlr",
        "deepfloyd-if-license",
        "fair-noncommercial-research-license",
        "h-research",
        "intel-research",
    }
)
_SAME_LICENCE = re.compile(
    r"(a?gpl|lgpl|gfdl|mpl|osl|odbl|eupl|epl|cdla-sharing|ofl|ms-pl)(-.*)?|cc-.*-sa-.*"
)
_GNU = "https://www.gnu.org/licenses"
_LINKS = {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
    "bsd-2-clause": "https://opensource.org/license/bsd-2-clause",
    "bsd-3-clause": "https://opensource.org/license/bsd-3-clause",
    "mpl-2.0": "https://www.mozilla.org/MPL/2.0/",
    "gpl-2.0": f"{_GNU}/old-licenses/gpl-2.0.html",
    "gpl-3.0": f"{_GNU}/gpl-3.0.html",
    "lgpl-2.1": f"{_GNU}/old-licenses/lgpl-2.1.html",
    "lgpl-3.0": f"{_GNU}/lgpl-3.0.html",
    "agpl-3.0": f"{_GNU}/agpl-3.0.html",
    "unlicense": "https://unlicense.org",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "creativeml-openrail-m": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "bigscience-bloom-rail-1.0": "https://huggingface.co/spaces/bigscience/license",
    "llama3": "https://www.llama.com/llama3/license/",
    "llama3.1": "https://www.llama.com/llama3_1/license/",
    "llama3.2": "https://www.llama.com/llama3_2/license/",
    "llama3.3": "https://www.llama.com/llama3_3/license/",
    "llama4": "https://www.llama.com/llama4/license/",
    "gemma": "https://ai.google.dev/gemma/terms",
}
_ATTRIBUTIONS = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta "
    "Platforms, Inc. All Rights Reserved.",
    "llama3": "Built with Meta Llama 3. Meta Llama 3 is licensed under the Meta Llama 3 Community "
    "License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
    **{
        f"llama{version}": f"Built with Llama. Llama {version} is licensed under the Llama "
        f"{version} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
        for version in ("3.1", "3.2", "3.3", "4")
    },
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms.",
    "apple-amlr": "Apple Machine Learning Research Model is licensed under the Apple Machine "
    "Learning Research Model License Agreement.",
}
_NAMES = {
    "llama3": re.compile(r"(meta-)?llama[-_. ]?3", re.IGNORECASE),
    **{f"llama{v}": re.compile(r"llama", re.IGNORECASE) for v in ("3.1", "3.2", "3.3", "4")},
}
"""How the name of a model must begin that was made from another under this licence."""


@dataclass(frozen=True)
class BaseInfo:
    """What the Hub says of the original at the moment of publication.

    Attributes:
        license: its identifier.
        license_name: the name of one that is `other`.
        license_link: where that can be read.
        gated: whether one must agree to something, or be let in, before downloading.
        private: whether only some see it at all.
        files: names of its files.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    gated: bool = False
    private: bool = False
    files: tuple[str, ...] = ()


def check_license(
    card: Mapping[str, Any],
    carried: Collection[str],
    base: BaseInfo | None = None,
    permission: str | None = None,
    repo_id: str | None = None,
    kept_to_owner: bool = False,
) -> None:
    """Refuse to publish what the original's licence does not let us publish.

    Args:
        card: the card, as its file says.
        carried: names of the files that would be published.
        base: the original on the Hub, if it is there.
        permission: where the permission to publish can be read. It stands in for what a licence
            withholds; it does not free from what a licence asks for, nor from the Hub's spelling.
        repo_id: where it would be published; some licences ask for a name.
        kept_to_owner: whether only those would see it who have the original anyway: then nothing
            is passed on, and what the licence withholds does not matter.

    Raises:
        HubError: naming what is missing and what to do.
    """
    identifier = card.get("license") or None
    if identifier is not None and identifier not in LICENSES:
        raise HubError(
            f"The card {_of(card)} has the license {identifier!r}, which is no identifier of the "
            f"Hub's.{nearest(str(identifier), LICENSES)} For a licence of its own, write `license: "
            "other` with `license_name` and `license_link`."
        )
    checks = [_unmet(card, identifier, carried, base, repo_id)]
    if not (permission or "").strip() and not kept_to_owner:
        checks.insert(0, _withheld(card, identifier, carried, base))
    for check in checks:
        for problem in check:
            raise HubError(f"This model cannot be published: {problem}")


_PERMISSION = "If you have permission, say with `permission` where it can be read."


def _withheld(
    card: Mapping[str, Any], identifier: str | None, carried: Collection[str], base: BaseInfo | None
) -> Iterator[str]:
    """Yield why there is no right to publish."""
    if identifier in (None, "unknown"):
        yes = base is not None and base.license not in (None, "unknown")
        yield (
            f"the card {_of(card)} has no license"
            + (f", while the original's page says {_stated(base)}" if yes else "")
            + ". Without one nobody but the authors may pass it on. Add `license` to the card if "
            f"the original has one. {_PERMISSION} The authors may keep it to themselves: --private."
        )
    if identifier in _NO_DERIVATIVES:
        yield (
            f"its license {identifier} forbids passing on changed versions, and a compressed model "
            f"is one. Keep it to yourself, or publish the recipe alone. {_PERMISSION}"
        )
    if identifier == "cc":
        yield (
            "its license 'cc' is a family, and some of it forbid changed versions. Write which one "
            f"the original has, such as cc-by-4.0. {_PERMISSION}"
        )
    if identifier in _TO_BE_READ:
        yield (
            f"whether its license {identifier} lets others publish changed versions has to be read "
            f"in its text. {_PERMISSION}"
        )
    if identifier == "other":
        named = card.get("license_name")
        readable = card.get("license_link") or any(map(_is_licence, carried))
        if not (named and readable):
            yield (
                "its license is 'other', so nobody knows which. Add `license_name` and "
                "`license_link` to the card; a LICENSE file among the model's files stands in for "
                f"the link. {_PERMISSION}"
            )
    if base is not None and _differs(card, identifier, base):
        yield (
            f"its card says {_card_states(card, identifier)}, the original's page says "
            f"{_stated(base)}. Make the card say what the original does. {_PERMISSION}"
        )
    if base is not None and (base.private or base.gated):
        how = "private" if base.private else "gated: people must agree to terms or be let in first"
        yield (
            f"the original is {how}, and a copy elsewhere would lead around that. Its owner may "
            "publish it privately: --private, in a repository of the original's owner. "
            f"{_PERMISSION}"
        )


def _unmet(
    card: Mapping[str, Any],
    identifier: str | None,
    carried: Collection[str],
    base: BaseInfo | None,
    repo_id: str | None,
) -> Iterator[str]:
    """Yield what the licence asks for and does not get."""
    present = {name.rpartition("/")[2] for name in carried}
    original = base.files if base is not None else ()
    missing = sorted(n for n in original if LEGAL_FILE.fullmatch(n) and n not in present)
    if missing and _needs_text(identifier):
        yield (
            f"the license {identifier} asks that its text go along, and {', '.join(missing)} of "
            "the original would not, since it could not be fetched from there."
        )
    begins, name = _NAMES.get(identifier or ""), (repo_id or "").rpartition("/")[2]
    if begins is not None and repo_id is not None and not begins.match(name):
        wanted = "Llama-3" if identifier == "llama3" else "Llama"
        yield (
            f"the license {identifier} asks that the name of a model made from it begin with "
            f"{wanted!r}, and {name!r} does not. Call it {wanted + '-' + name!r}, for example."
        )


def obligations(license: str | None) -> list[str]:
    """Return what a licence asks of whoever uses or passes on the model, as sentences for people.

    Args:
        license: its identifier.
    """
    if license is None:
        return []
    sentences = []
    if license in _ATTRIBUTIONS:
        sentences.append(_ATTRIBUTIONS[license])
    if license in _RESEARCH_ONLY:
        sentences.append("For research only, not for commercial use.")
    elif "-nc-" in license:
        sentences.append("Not for commercial use.")
    if license.startswith("cc-by"):
        sentences.append("Name the original's authors and say that it was changed.")
    if _SAME_LICENCE.fullmatch(license):
        sentences.append("Whoever passes on a changed version does so under the same licence.")
    if "rail" in license or license.startswith("llama") or license == "gemma":
        sentences.append("Its restrictions of use bind whoever uses this model or passes it on.")
    if license != "other" and _needs_text(license):
        sentences.append("Whoever passes the model on passes the licence's text on with it.")
    return sentences


def forbids_commercial_use(license: str | None) -> bool:
    """Tell whether a licence of the Hub's list allows no commercial use."""
    return license in _RESEARCH_ONLY or "-nc-" in (license or "")


def license_link(license: str | None) -> str | None:
    """Return where a licence of the Hub's list can be read, if that is a place that lasts."""
    match = re.fullmatch(r"cc-(by(?:-nc)?(?:-nd|-sa)?)-(\d\.\d)", license or "")
    if match:
        return f"https://creativecommons.org/licenses/{match[1]}/{match[2]}/"
    return _LINKS.get(license or "")


def _needs_text(identifier: str | None) -> bool:
    return (
        identifier is not None
        and identifier not in _NO_TEXT
        and not identifier.startswith(("cc-", "cc0-"))
    )


def _is_licence(name: str) -> bool:
    last = name.rpartition("/")[2]
    return bool(LEGAL_FILE.fullmatch(last)) and last.upper().startswith(("LICEN", "COPYING"))


def _differs(card: Mapping[str, Any], identifier: str | None, base: BaseInfo) -> bool:
    if identifier != base.license:
        return True
    names = (card.get("license_name"), base.license_name)
    return identifier == "other" and all(names) and _folded(names[0]) != _folded(names[1])


def _folded(name: Any) -> str:
    return re.sub(r"[-_\s]+", "-", str(name).strip().casefold())


def _of(card: Mapping[str, Any]) -> str:
    return repr(card.get("name", ""))


def _stated(base: BaseInfo | None) -> str:
    if base is None or base.license is None:
        return "none"
    return f"{base.license!r}" + (f" ({base.license_name})" if base.license_name else "")


def _card_states(card: Mapping[str, Any], identifier: str | None) -> str:
    name = card.get("license_name")
    return f"{identifier!r}" + (f" ({name})" if name else "")
