"""A library that is missing is told from one that is broken."""

import sys
from pathlib import Path

import pytest

from zoopress.errors import SourceError, cautious
from zoopress.optional import import_optional

INSTALL = "pip install 'zoopress[x]'"


def wanted(name: str, remedy: str = "") -> object:
    return import_optional(name, f"This model needs {name}", INSTALL, SourceError, remedy)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "brokenlib"
    folder.mkdir()
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "brokenlib"]:
        del sys.modules[name]


def test_a_missing_library_is_to_be_installed() -> None:
    with pytest.raises(SourceError, match=r"^This model needs nolib, which is not installed: pip"):
        wanted("nolib")
    assert wanted("json").__name__ == "json"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nodependency", "which is installed, but needs 'nodependency', which is not"),
        ("from json import nothing", "cannot be imported: ImportError: cannot import name 'noth"),
        ("raise RuntimeError('operator torchvision::nms')", "RuntimeError: operator torchvision"),
        ("raise OSError('libx.so: cannot open')", "OSError: libx.so: cannot open"),
        ("1/0", "ZeroDivisionError"),
        ("import brokenlib.gone", "cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_a_broken_library_is_said_to_be_broken(package: Path, code: str, words: str) -> None:
    (package / "__init__.py").write_text(code + "\n")
    with pytest.raises(SourceError, match=words) as caught:
        wanted("brokenlib")
    assert "which is not installed:" not in str(caught.value)
    with pytest.raises(SourceError, match="Reinstall both"):
        wanted("brokenlib", "Reinstall both together.")


@pytest.mark.parametrize(
    "text",
    [
        "Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` will",
        "Object arrays cannot be loaded when allow_pickle=False",
        "Cannot load file containing pickled data when allow_pickle=False",
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
        "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``.",
    ],
)
def test_advice_to_open_it_unsafely_is_not_passed_on(text: str) -> None:
    told = cautious(text)
    assert not any(w in told for w in ("weights_only", "allow_pickle", "trust_remote_code"))
    assert "run" in told
    assert cautious("the file ends at byte 3") == "the file ends at byte 3"
