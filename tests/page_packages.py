"""Pages whose files make a package: written and installed as anyone would."""

import os
import re
import subprocess
import sys
from pathlib import Path


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of every block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def files_of(page: Path) -> dict[str, str]:
    """Return the files that a page shows, by the name in their first line."""
    return {
        match[1]: content
        for _, content in blocks_of(page)
        if (match := re.match(r"# file: (\S+)\n", content)) is not None
    }


def python(
    folder: Path, *arguments: str, program: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a folder, with what is installed in its folder `site`."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def install_page(page: Path, folder: Path) -> Path:
    """Write a page's files and install them, without a network; return the folder."""
    (folder / "source").mkdir()
    for name, content in files_of(page).items():
        (folder / "source" / name).write_text(content, encoding="utf-8")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    done = python(folder, "-m", "pip", "install", *options, "--target", "site", "./source")
    assert done.returncode == 0, done.stderr
    return folder
