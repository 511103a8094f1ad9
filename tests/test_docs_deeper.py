"""What docs/deeper-techniques.md shows works as it stands there."""

import re
from pathlib import Path

import pytest

from page_packages import blocks_of, files_of, install_page, python
from warm import WarmProcess

PAGE = Path(__file__).parents[1] / "docs" / "deeper-techniques.md"
FILES = files_of(PAGE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page's files and install them like anyone would, but without a network."""
    return install_page(PAGE, tmp_path_factory.mktemp("page"))


def test_every_block_is_a_file_of_the_package() -> None:
    assert len(blocks_of(PAGE)) == len(FILES) == 7


def test_the_pages_own_tests_pass(installed: Path, warm: WarmProcess) -> None:
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    words = ("-m", "pytest", *options, "source/test_deeper.py")
    done = python(installed, *words, program=warm.python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_lines_are_as_short_as_the_projects_own() -> None:
    assert [line for text in FILES.values() for line in text.splitlines() if len(line) > 100] == []


def test_they_are_listed_with_the_hooks_that_they_were_made_for(installed: Path) -> None:
    listed = python(installed, "-m", "zoopress", "plugin", "list").stdout
    for name in ("group_pruning", "slimming", "bias_correction", "taylor_pruning"):
        assert re.search(rf"^{name} +zoopress-deeper 0\.1\.0 +loaded$", listed, re.M)
