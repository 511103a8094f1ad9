"""What loading requires: the lines that install it, and who is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from zoopress.artifacts.requirements import (
    Requirement,
    check_requirements,
    find_requirements,
    install_line,
)
from zoopress.errors import ArtifactError
from zoopress.plugins import Origin, Registry, load_plugins


def needed(distribution: str, version: str = "1.2", name: str = "form") -> Requirement:
    return Requirement(kind="layer", name=name, distribution=distribution, version=version)


def test_a_line_names_each_distribution_once_with_the_version_at_least() -> None:
    requires = [
        needed("zoopress-b", "2.0+cpu"),
        needed("zoopress-a"),
        needed("zoopress-a", name="x"),
    ]
    assert install_line(requires) == "pip install 'zoopress-a>=1.2' 'zoopress-b>=2.0'"


@pytest.mark.parametrize(
    ("distribution", "version"),
    [
        ("evil; rm -rf ~", "1"),
        ("evil'", "1"),
        ("--index-url", "1"),
        ("git+https://example.org/evil", "1"),
        ("evil", "1' evil '"),
        ("evil", "$(evil)"),
        ("evil", ""),
        ("a" * 200, "1"),
    ],
)
def test_what_no_distribution_or_version_can_be_called_is_refused(
    distribution: str, version: str
) -> None:
    with pytest.raises(ValidationError):
        needed(distribution, version)


def test_what_zoopress_brings_and_what_nobody_installed_need_no_entry() -> None:
    plugins = load_plugins()
    names = {"layers": ["quantized", "grid"], "architectures": ["factory"]}
    assert find_requirements(plugins, names) == []  # type: ignore[arg-type]
    plugins.origins["weight_quantization"] = Origin("weight_quantization", "another", "3")
    plugins.origins["zoo"] = Origin("zoo", "(not installed)", "0")
    found = find_requirements(plugins, names)  # type: ignore[arg-type]
    assert [(each.kind, each.name, each.distribution) for each in found] == [
        ("layer", "quantized", "another")
    ]


def test_what_another_distribution_registers_under_the_name_is_refused(tmp_path: Path) -> None:
    plugins = load_plugins()
    plugins.origins["weight_quantization"] = Origin("weight_quantization", "Zoopress_B", "3")
    used: dict[Registry, list[str]] = {"layers": ["quantized"]}
    same = [needed("zoopress-b", name="quantized")]
    check_requirements(tmp_path / "zoopress.json", same, [], used, plugins)
    other = [needed("zoopress-a", name="quantized")]
    with pytest.raises(
        ArtifactError,
        match=r"layer 'quantized' of zoopress-a 1\.2 is needed, and here .* that of Zoopress_B.*"
        r"pip install 'zoopress-a>=1\.2'.*ZOOPRESS_BLOCK_PLUGINS=weight_quantization",
    ):
        check_requirements(tmp_path / "zoopress.json", other, [], used, plugins)
