"""Make a repository for a zoo of one's own: git, DVC, a card, a recipe, and the pipeline of both.

    FOLDER/
        params.yaml                 which cards and recipes; written last, so it tells that the
                                    rest is there
        dvc.yaml                    the pipeline: every card with every recipe, then the charts
        cards/NAME.yaml             the first card
        sources/                    weights, code and data that cards name
        requirements.txt            the versions that results depend on
        .dvc/plots/*.json           how the charts look
        .github/workflows/zoo.yml   the same in CI
        README.md, .gitignore, .dvcignore

What is there already is never overwritten.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zoopress.errors import InputError, ZoopressError, os_words
from zoopress.scaffolds.zoo_files import FirstCard, first_card, zoo_files
from zoopress.store import write_atomic

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

REMOTE = "storage"
State = Literal["written", "there"]


@dataclass
class Initialized:
    """What became of a folder.

    Attributes:
        folder: which.
        files: what belongs there, by path, and whether it was written or was there.
        git: whether a repository was made.
        dvc: whether DVC was set up.
        remote: the DVC remote that was added.
        commit: the commit that was made.
        notes: what the user should know or do.
    """

    folder: Path
    files: dict[str, State] = field(default_factory=dict)
    git: State = "there"
    dvc: State = "there"
    remote: str | None = None
    commit: str | None = None
    notes: list[str] = field(default_factory=list)


def init_zoo(
    folder: Path,
    plugins: Plugins,
    card: str | None = None,
    remote: str | None = None,
    commit: bool = True,
    dry_run: bool = False,
) -> Initialized:
    """Make a folder a zoo's repository, in which `dvc repro` works at once.

    A second time changes nothing.

    Args:
        folder: where; made if missing.
        plugins: what is registered.
        card: "example", a registered card's name, or what `zoopress zoo add` takes; by default the
            encoder `minilm` if its package is there, else the example.
        remote: folder or address of a DVC remote.
        commit: whether to commit what was written.
        dry_run: only tell what would be done.

    Raises:
        InputError: if the folder cannot be a repository's root, or there is no such card.
        ZoopressError: if git or DVC are missing or fail.
    """
    folder = folder.expanduser().resolve()
    check_place(folder)
    done = Initialized(folder)
    has_matrix = (folder / "params.yaml").exists()
    if has_matrix and card is not None:
        raise InputError(
            f"{folder} is a zoo already. Add a card with `zoopress zoo add {card}`, and name it in "
            "matrix.cards of params.yaml."
        )
    first = FirstCard("", {}) if has_matrix else first_card(card, folder, plugins)
    wanted = zoo_files(folder.name, first, remote)
    done.notes += first.todo
    for path in wanted:
        done.files[path] = "there" if (folder / path).exists() else "written"
    done.git = "there" if (folder / ".git").exists() else "written"
    done.dvc = "there" if (folder / ".dvc" / "config").exists() else "written"
    _note_files_of_others(done, wanted)
    if dry_run:
        done.remote = remote
        return done

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if done.git == "written":
            _run(folder, "git", "init", "--quiet")
        _write(done, wanted, ".dvcignore")  # before DVC writes its own
        if done.dvc == "written":
            _set_up_dvc(folder)
        for path in wanted:
            if path != "params.yaml":
                _write(done, wanted, path)
        if "sources/example.py" in first.files:
            _train_example(done)
        done.remote = _add_remote(done, remote)
        _write(done, wanted, "params.yaml")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {os_words(error)}. Choose another folder."
        ) from error
    if commit:
        _commit(done)
    return done


def check_place(folder: Path) -> None:
    """Make sure that git and DVC are there, and that a folder can be a repository's root.

    Raises:
        InputError: if it cannot.
        ZoopressError: if one of the two is missing.
    """
    if find_spec("dvc") is None:
        raise ZoopressError("A zoo's repository needs DVC: pip install 'zoopress[versions]'.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose another folder.")
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        root = _run(existing, "git", "rev-parse", "--show-toplevel", check=False)
    except FileNotFoundError:
        raise ZoopressError(
            "A zoo's repository needs git, which was not found. Install it from "
            "https://git-scm.com/downloads or with the system's package manager."
        ) from None
    if root and Path(root).resolve() != folder:
        raise InputError(
            f"{folder} lies in the git repository {root}, and a zoo needs one of its own. Choose a "
            f"folder outside, or make that one the zoo: zoopress init {root}"
        )


def _write(done: Initialized, wanted: Mapping[str, str], path: str) -> None:
    """Write a file that was not there before."""
    target = done.folder / path
    if path in wanted and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, wanted[path])


def _note_files_of_others(done: Initialized, wanted: Mapping[str, str]) -> None:
    """Say which pipeline is in the way of ours; other files may well be the user's own."""
    pipeline = done.folder / "dvc.yaml"
    if pipeline.is_file() and pipeline.read_bytes() != wanted["dvc.yaml"].encode():
        done.notes.append(
            "dvc.yaml was there and is not the one of a new zoo; it was left as it is. To compare: "
            "zoopress init ANOTHER_FOLDER --no-commit"
        )


def _set_up_dvc(folder: Path) -> None:
    _dvc(folder, "init", "--quiet")
    write_atomic(
        folder / ".dvc" / "config", "[core]\n    analytics = false\n    check_update = false\n"
    )


def _train_example(done: Initialized) -> None:
    path = "sources/example.safetensors"
    done.files[path] = "there" if (done.folder / path).exists() else "written"
    if done.files[path] == "written":
        _run(done.folder, sys.executable, "sources/example.py")


def _add_remote(done: Initialized, remote: str | None) -> str | None:
    """Make a folder or an address the default remote, unless there is one."""
    if remote is None:
        return None
    url = remote if "://" in remote else str(Path(remote).expanduser().resolve())
    before = _dvc(done.folder, "config", "core.remote", check=False)
    if before:
        known = _dvc(done.folder, "config", f"remote.{before}.url", check=False)
        if known != url:
            done.notes.append(
                f"The DVC remote {before!r} ({known}) was there and was left as it is. To change "
                f"it: dvc remote modify {before} url {url}"
            )
        return None
    _dvc(done.folder, "remote", "add", "--quiet", "--default", REMOTE, url)
    return url


def _commit(done: Initialized) -> None:
    """Commit what was written, and nothing that the user may have staged."""
    paths = [path for path, state in done.files.items() if state == "written"]
    if done.dvc == "written":
        paths += [".dvc/.gitignore", ".dvc/config"]
    elif done.remote:
        paths.append(".dvc/config")
    if not paths:
        return
    _run(done.folder, "git", "add", "--", *paths)
    command = ("commit", "--quiet", "-m", "A zoo, made by zoopress init", "--", *paths)
    try:
        # Without this git makes up an address from the machine's name.
        _run(done.folder, "git", "-c", "user.useConfigOnly=true", *command)
    except ZoopressError as error:
        if "tell me who you are" not in str(error):
            raise
        done.notes.append(
            "Nothing was committed, since git does not know who you are; all is staged. Run: "
            "git config --global user.name NAME; git config --global user.email ADDRESS; "
            "git commit"
        )
        return
    done.commit = _run(done.folder, "git", "rev-parse", "HEAD")


def _dvc(folder: Path, *arguments: str, check: bool = True) -> str:
    return _run(folder, sys.executable, "-m", "dvc", *arguments, check=check)


def _run(folder: Path, *command: str, check: bool = True) -> str:
    """Run a tool and return what it prints; "" if it fails and that is no error.

    Raises:
        ZoopressError: if it fails.
    """
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "LC_ALL": "C.UTF-8"}  # what they say
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and check:
        shown = " ".join(command).replace(sys.executable, "python")
        said = (done.stderr or done.stdout).strip()
        raise ZoopressError(f"`{shown}` failed in {folder}: {said}")
    return "" if done.returncode else done.stdout.strip()
