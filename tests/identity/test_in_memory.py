"""Code of a session: what is in memory and not in a file, and files that code reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoopress.errors import CardError
from zoopress.identity import callable_code, load_callable

COUNT = iter(range(1000))


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """A name of its own for each test's modules: Python keeps them by name."""
    prefix = f"session{next(COUNT)}"
    yield prefix
    for each in [n for n in sys.modules if n.startswith(prefix)]:
        del sys.modules[each]


def write(folder: Path, **files: str) -> None:
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)


def ran(folder: Path, reference: str) -> tuple[str, Any]:
    """The digest of a card's code, and what that gives."""
    code = callable_code(reference, folder)
    return code, load_callable(reference, folder, code)()


def other(self: Any) -> int:
    return 2


@pytest.mark.parametrize(
    ("helper", "use", "change", "words"),
    [
        (
            "class K:\n    def f(self): return 1\n",
            "K().f()",
            lambda m: setattr(m.K, "f", other),
            r"K.f was replaced by code from .*test_in_memory.py",
        ),
        (
            "def f(self): return 1\n",
            "f(0)",
            lambda m: setattr(m, "f", other),
            r"f was replaced by code from",
        ),
        (
            "class K:\n    @property\n    def f(self): return 1\n",
            "K().f",
            lambda m: setattr(m.K, "f", property(other)),
            r"K.f was replaced by code from",
        ),
        (
            "SIZE = 1\n\n\ndef f(self): return SIZE\n",
            "f(0)",
            lambda m: setattr(m, "SIZE", 2),
            r"SIZE was set to 2; the file says 1",
        ),
    ],
)
def test_what_was_changed_in_memory_is_refused(
    tmp_path: Path, name: str, helper: str, use: str, change: Any, words: str
) -> None:
    names = "K" if "class K" in helper else "f"
    write(
        tmp_path,
        **{
            f"{name}_help": helper,
            name: f"from {name}_help import {names}\n\n\n"
            f"def build():\n    import {name}_help\n    return {name}_help.{use}\n",
        },
    )
    code, value = ran(tmp_path, f"{name}.py:build")
    assert value == 1
    module = sys.modules[f"{name}_help"]
    change(module)
    # Asked for the key already: the store may have what the file's code gave.
    with pytest.raises(CardError, match=words):
        callable_code(f"{name}.py:build", tmp_path)
    del sys.modules[f"{name}_help"]
    assert ran(tmp_path, f"{name}.py:build") == (code, 1)


def test_decorated_and_generated_code_is_no_change(tmp_path: Path, name: str) -> None:
    text = (
        "import dataclasses\nimport functools\n\nimport torch\n\n\n"
        "@dataclasses.dataclass\nclass D:\n    a: int = 1\n\n    @torch.no_grad()\n"
        "    def f(self):\n        return self.a\n\n    @functools.cached_property\n"
        "    def g(self):\n        return self.a\n\n    @staticmethod\n    def h():\n"
        "        return 0\n\n\nCALLS = 0\n\n\n@functools.lru_cache\ndef k():\n    return D()\n\n\n"
        "def count():\n    global CALLS\n    CALLS += 1\n"
    )
    write(
        tmp_path,
        **{
            f"{name}_help": text,
            name: f"import {name}_help as m\n\n\ndef build():\n"
            "    m.count()\n    return m.k().f() + m.k().g + m.D.h()\n",
        },
    )
    for _ in range(2):
        assert ran(tmp_path, f"{name}.py:build")[1] == 2


def test_a_function_of_the_notebook_is_refused(tmp_path: Path) -> None:
    for ask in (callable_code, load_callable):
        with pytest.raises(CardError, match=r"of the notebook or script.*Write it into a file"):
            ask("__main__:build", tmp_path)


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("(Path(__file__).parent / 'sizes.json').read_text()", "sizes.json"),
        ("(Path(__file__).parent / 'data' / 'sizes.json').read_bytes()", "data/sizes.json"),
        ("(Path(__file__).parent / 'data/deep/sizes.json').read_text()", "data/deep/sizes.json"),
    ],
)
def test_a_file_that_code_names_is_in_the_key(
    tmp_path: Path, name: str, code: str, file: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("1")
    read = f"from pathlib import Path\n\n\ndef size():\n    return int({code})\n"
    write(
        tmp_path,
        **{
            f"{name}_help": read,
            name: f"from {name}_help import size\n\n\ndef build():\n    return size()\n",
        },
    )
    first = ran(tmp_path, f"{name}.py:build")
    (tmp_path / file).write_text("2")
    second = ran(tmp_path, f"{name}.py:build")
    assert (first[1], second[1]) == (1, 2)
    assert first[0] != second[0]


def test_a_file_whose_name_is_put_together_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "sizes-a.json").write_text("1")
    text = "from pathlib import Path\n\n\ndef build(kind='a'):\n"
    text += "    return (Path(__file__).parent / f'sizes-{kind}.json').read_text()\n"
    write(tmp_path, **{name: text})
    with pytest.raises(CardError, match=r"reads .*sizes-a.json.*Spell the name as one string"):
        ran(tmp_path, f"{name}.py:build")


def test_modules_whose_names_are_put_together_are_imported_anew(tmp_path: Path, name: str) -> None:
    build = "import importlib\n\n\ndef build(end='help'):\n"
    build += f"    return importlib.import_module('{name}_' + end).f()\n"
    write(tmp_path, **{name: build, f"{name}_help": "def f(): return 1\n"})
    first = ran(tmp_path, f"{name}.py:build")
    write(tmp_path, **{f"{name}_help": "def f(): return 2\n"})
    second = ran(tmp_path, f"{name}.py:build")
    assert (first[1], second[1]) == (1, 2)
    assert first[0] != second[0]


def test_a_folder_that_code_puts_on_the_path_is_in_the_key(tmp_path: Path, name: str) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "lib").mkdir()
    write(tmp_path / "lib", **{f"{name}_help": "def f(): return 1\n"})
    text = "import sys\nfrom pathlib import Path\n\n"
    text += "sys.path.insert(0, str(Path(__file__).parent.parent / 'lib'))\n"
    text += f"from {name}_help import f\n\n\ndef build():\n    return f()\n"
    write(tmp_path / "card", **{name: text})
    try:
        first = ran(tmp_path / "card", f"{name}.py:build")
        write(tmp_path / "lib", **{f"{name}_help": "def f(): return 2\n"})
        second = ran(tmp_path / "card", f"{name}.py:build")
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path / "lib")]
    assert (first[1], second[1]) == (1, 2)
    assert first[0] != second[0]


def test_a_file_of_a_package_says_how_to_name_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    write(folder, __init__="", net="from . import parts\n\n\ndef build(): ...\n", parts="")
    with pytest.raises(CardError, match=rf"Name it as a part of its package: '{name}.net:build'"):
        load_callable(f"{name}/net.py:build", tmp_path)
    load_callable(f"{name}.net:build", tmp_path)()
