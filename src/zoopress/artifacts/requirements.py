"""What loading an artifact requires besides zoopress, and the line that installs it.

Distributions and versions in a manifest may come from a stranger. They are shown to people, held to
what such names can be, and never installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoopress.errors import ArtifactError, nearest
from zoopress.plugins import Registry, kind_of

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

OURS = "zoopress"
_FIELDS: Mapping[Registry, str] = {
    "architectures": "architecture",
    "entropy_coders": "coder",
    "layers": "edits",
}
"""Where a manifest names what is registered."""


class Requirement(BaseModel):
    """Something registered that loading needs, and the distribution that registers it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(pattern=r"^[a-z][a-z ]{0,39}$", description="layer, architecture, …")
    name: str
    distribution: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$", description="as pip knows it"
    )
    version: str = Field(
        pattern=r"^[0-9A-Za-z][0-9A-Za-z.!+_-]{0,63}$", description="that it was saved with"
    )

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r} of {self.distribution} {self.version}"


def find_requirements(
    plugins: Plugins, names: Mapping[Registry, Iterable[str]]
) -> list[Requirement]:
    """Return what is needed of all that is used, but for what zoopress itself brings.

    What no distribution brings, such as a test's plugin, has no entry.

    Args:
        plugins: what is registered.
        names: what is used, by registry.
    """
    found = []
    for hook, used in names.items():
        for name in sorted(set(used)):
            origin = plugins.origin(hook, name)
            if origin.distribution == OURS:
                continue
            try:
                requirement = Requirement(
                    kind=kind_of(hook),
                    name=name,
                    distribution=origin.distribution,
                    version=origin.version,
                )
            except ValidationError:  # "(not installed)": there is nothing to install
                continue
            found.append(requirement)
    return sorted(found, key=lambda each: (each.kind, each.name))


def packages_of(requirements: Sequence[Requirement]) -> list[str]:
    """Return what pip takes for some requirements, quoted for a shell."""
    newest: dict[str, str] = {}
    for each in requirements:
        newest[each.distribution] = each.version.partition("+")[0]  # a local label is no bound
    return [f"'{name}>={newest[name]}'" for name in sorted(newest)]


def install_line(requirements: Sequence[Requirement]) -> str:
    """Return the line that installs some requirements."""
    return f"pip install {' '.join(packages_of(requirements))}"


def check_requirements(
    path: Path,
    requires: Sequence[Requirement],
    lineage: Sequence[Mapping[str, Any]],
    used: Mapping[Registry, Iterable[str]],
    plugins: Plugins,
) -> None:
    """Refuse an artifact that needs what is not registered here.

    Args:
        path: of the artifact's manifest.
        requires: what its manifest says.
        lineage: its stages; of an artifact without `requires` they name distributions, too.
        used: names that it uses, by registry.
        plugins: what is registered.

    Raises:
        ArtifactError: naming what is missing, its distribution and the line that installs it.
    """
    for hook, names in used.items():
        for name in sorted(set(names)):
            kind = kind_of(hook)
            known = [each for each in requires if (each.kind, each.name) == (kind, name)]
            if name in plugins.references[hook]:
                if known:
                    _check_origin(path, hook, known[0], plugins)
                continue
            field = _FIELDS[hook]
            broken = next(
                (b for b in plugins.broken if known and b.distribution == known[0].distribution),
                None,
            )
            if broken:
                hint = f"But {broken}"
            elif known:
                hint = f"It comes with {_told(known[0])}"
            elif makers := _makers(lineage):
                hint = f"It was made with {'; with '.join(_told(each) for each in makers)}"
            else:
                hint = "Install the plugin that provides it"
            raise ArtifactError(
                f"{path}: field {field!r}: the {kind} {name!r} is not registered here. {hint}."
                f"{nearest('', plugins.references[hook])}"
            )


def _check_origin(path: Path, hook: Registry, known: Requirement, plugins: Plugins) -> None:
    """Refuse what another distribution registers under the name that an artifact uses."""
    here = plugins.origin(hook, known.name)
    if _normal(here.distribution) == _normal(known.distribution):
        return
    raise ArtifactError(
        f"{path}: field {_FIELDS[hook]!r}: {known} is needed, and here the {known.kind} "
        f"{known.name!r} is that of {here.distribution}, which may compute something else. "
        f"{_told(known).capitalize()}. Leave the other out with "
        f"ZOOPRESS_BLOCK_PLUGINS={here.plugin}, or uninstall {here.distribution}."
    )


def _normal(distribution: str) -> str:
    """Return a distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _told(requirement: Requirement) -> str:
    """Return a distribution, whether it is here, and what to do about it."""
    name = f"{requirement.distribution} {requirement.version}"
    line = install_line([requirement])
    try:
        here = version(requirement.distribution)
    except PackageNotFoundError:
        return f"{name}, which is not installed: {line}"
    return f"{name}; {here} is installed and does not register it, or is blocked: {line}"


def _makers(lineage: Sequence[Mapping[str, Any]]) -> list[Requirement]:
    """Return the distributions of the techniques that made an artifact, but for zoopress."""
    found: dict[str, Requirement] = {}
    for stage in lineage:
        try:
            made = Requirement(
                kind="technique",
                name=str(stage.get("technique")),
                distribution=cast(str, stage.get("distribution")),
                version=cast(str, stage.get("version")),
            )
        except ValidationError:
            continue
        if made.distribution != OURS:
            found[made.distribution] = made
    return list(found.values())
