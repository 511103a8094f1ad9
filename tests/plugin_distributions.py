"""Plugins that are installed as anyone's are, for tests of what becomes of them."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., None]
TECHNIQUE = """
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique


class Mine(Technique[Config]):
    name = "{name}"
    family = "pruning"
    config_type = Config

    def effects(self):
        return Effects()

    def apply(self, model, context):
        return Outcome(touched=[])


@hookimpl
def zoopress_techniques():
    return [Mine]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Give a function that installs a distribution with one plugin module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []

    def write(distribution: str, plugin: str, code: str, metadata: bool = True) -> None:
        module = distribution.replace("-", "_") + "_module"
        modules.append(module)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
            )
        (info / "entry_points.txt").write_text(f"[zoopress]\n{plugin} = {module}\n")

    yield write
    for module in modules:
        sys.modules.pop(module, None)
