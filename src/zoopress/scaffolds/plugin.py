"""Write a new plugin: a package that installs, with one technique and a test that passes.

FOLDER/
    pyproject.toml      announces the plugin in the entry-point group "zoopress"
    NAME.py             the technique
    NAME_weight.py      of quantization: the packed weight
    NAME_layer.py       of low rank and redesign: the layer
    NAME_loss.py        of distillation: the loss
    test_NAME.py        holds it to the rules of zoopress.testing
"""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from zoopress.errors import InputError, nearest, os_words
from zoopress.interface import HOOK_INTERFACE, spelled
from zoopress.techniques import Family

_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

TEMPLATES = Path(__file__).parent / "plugin_template"
_CONFIGS: dict[Family, str] = {
    "pruning": "sparsity=0.5",
    "quantization": "bits=4",
    "low_rank": "parameters=0.5",
    "distillation": 'training={"steps": 4}',
    "coding": "mantissa_bits=7",
    "redesign": "",
    "transfer": 'training={"steps": 4}',
}
"""What the written test gives the technique's config."""


def write_plugin(name: str, folder: Path, family: str = "pruning") -> Path:
    """Write a plugin with one technique.

    Args:
        name: the technique's, in snake_case; module and entry point are called so, too.
        folder: where; missing or empty.
        family: which kind of work it does.

    Returns:
        The folder.

    Raises:
        InputError: if the name cannot be a module's, there is no such family, or the folder holds
            something.
    """
    _check_name(name)
    if family not in _CONFIGS:
        raise InputError(f"There is no family {family!r}.{nearest(family, _CONFIGS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not an empty folder; nothing was written. Choose another with "
            "--folder."
        )
    files = plugin_files(name, family)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {os_words(error)}. Choose another with --folder."
        ) from error
    return folder


def plugin_files(name: str, family: str) -> dict[str, str]:
    """Return the files of a plugin by name."""
    templates = {
        path.name.partition(".")[0]: path for path in sorted((TEMPLATES / family).iterdir())
    }
    modules = {
        name if part == "technique" else f"{name}_{part}": p for part, p in templates.items()
    }
    words = {
        "@NAME@": name,
        "@DISTRIBUTION@": name.replace("_", "-"),
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
        "@TITLE@": name.replace("_", " ").capitalize(),
        "@INTERFACE@": spelled(HOOK_INTERFACE),
        "@CONFIG@": _CONFIGS[family],  # type: ignore[index]
        "@MODULES@": ", ".join(f'"{module}"' for module in sorted(modules)),
    }

    def filled(template: Path) -> str:
        text = template.read_text(encoding="utf-8")
        for placeholder, word in words.items():
            text = text.replace(placeholder, word)
        return text

    return {
        "pyproject.toml": filled(TEMPLATES / "pyproject.toml.template"),
        **{f"{module}.py": filled(template) for module, template in modules.items()},
        f"test_{name}.py": filled(TEMPLATES / "test.py.template"),
    }


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
