"""Write a new plugin: a package that installs, with one technique and a test that passes.

FOLDER/
    pyproject.toml      announces the plugin in the entry-point group "zoopress"
    NAME.py             the technique
    test_NAME.py        holds it to the rules of zoopress.testing
"""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from zoopress.errors import InputError

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

# setuptools, since torch brings it: so the plugin installs without a network, too.
_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "@DISTRIBUTION@"
version = "0.1.0"
description = "A compression technique for zoopress."
requires-python = ">=3.10"
dependencies = ["zoopress"]

[project.entry-points.zoopress]
@NAME@ = "@NAME@"

[tool.setuptools]
py-modules = ["@NAME@"]
"""

_TECHNIQUE = '''\
"""@TITLE@: rows of weights with the smallest norm become zero."""

from pydantic import Field
from zoopress import Claim, Effects, Outcome, Technique, WeightSelection, hookimpl
from zoopress.techniques import MASKS


class @CLASS@Config(WeightSelection):
    """Which weights, and how many of their rows."""

    sparsity: float = Field(default=0.5, gt=0, lt=1, description="share of the rows to prune")


class @CLASS@(Technique[@CLASS@Config]):
    """Prune the rows of smallest norm."""

    name = "@NAME@"
    family = "pruning"
    config_type = @CLASS@Config

    def effects(self):
        """Work on float weights; leave masks that later stages keep."""
        return Effects(requires=self.config.properties(), adds=frozenset({MASKS}))

    def apply(self, model, context):
        """Mask whole rows of each selected weight."""
        weights, pruned, rows = self.config.select(model), 0, 0
        for weight in context.track(weights):
            norms = weight.matrix().norm(dim=1)  # a matrix is [out, in], whatever the layer
            count = round(self.config.sparsity * len(norms))
            keep = norms.argsort().argsort() >= count  # the rank of each row
            model.mask(weight, weight.from_matrix(keep[:, None].expand_as(weight.matrix())))
            pruned, rows = pruned + count, rows + len(norms)
        claim = Claim("rows pruned", self.config.sparsity, pruned / rows, tolerance=0.1)
        return Outcome([weight.name for weight in weights], [claim])


@hookimpl
def zoopress_techniques():
    """Register the technique."""
    return [@CLASS@]
'''

_TEST = '''\
"""The technique keeps the rules that every technique of zoopress keeps."""

from @NAME@ import @CLASS@, @CLASS@Config
from zoopress.testing import check_technique


def test_it_conforms():
    check_technique(@CLASS@(@CLASS@Config(sparsity=0.5)))
'''


def write_plugin(name: str, folder: Path) -> Path:
    """Write a plugin with one technique.

    Args:
        name: the technique's, in snake_case; module and entry point are called so, too.
        folder: where; missing or empty.

    Returns:
        The folder.

    Raises:
        InputError: if the name cannot be a module's, or the folder holds something.
    """
    _check_name(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not an empty folder; nothing was written. Choose another with "
            "--folder."
        )
    words = {
        "@NAME@": name,
        "@DISTRIBUTION@": name.replace("_", "-"),
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
        "@TITLE@": name.replace("_", " ").capitalize(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, template in (
            ("pyproject.toml", _PYPROJECT),
            (f"{name}.py", _TECHNIQUE),
            (f"test_{name}.py", _TEST),
        ):
            for placeholder, word in words.items():
                template = template.replace(placeholder, word)
            (folder / file).write_text(template, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}. Choose another with --folder."
        ) from error
    return folder


def _check_name(name: str) -> None:
    if not _SNAKE_CASE.fullmatch(name) or keyword.iskeyword(name) or name.startswith("test_"):
        raise InputError(
            f"{name!r} cannot name a technique: use a noun in snake_case, of lowercase letters, "
            "digits and single underscores, that is no keyword of Python, such as 'row_pruning'."
        )
    if name in sys.stdlib_module_names or name in ("zoopress", "torch", "pydantic", "pytest"):
        raise InputError(
            f"{name!r} cannot name a technique: a module of that name exists already, and the "
            f"plugin's would hide it. Try '{name}_compression'."
        )
