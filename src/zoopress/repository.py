"""A repository of models: git and DVC, through their command lines.

Commands run in the repository, with the folder of this Python first in the search path, so that
`dvc repro` finds the `zoopress` that is running. They survive a `kill -9` of this process, and when
it is interrupted they are, and are waited for: git leaves its lock behind only if it is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from zoopress.errors import RepositoryError
from zoopress.provenance import LOCK, ask_git
from zoopress.store import write_atomic

PARAMS, PIPELINE = "params.yaml", "dvc.yaml"
FALLBACK_AUTHOR = {"user.name": "zoopress nightly", "user.email": "zoopress@localhost"}
"""Who commits where git does not know."""
_UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "BISECT_LOG": "a bisection",
}
_LOCK_PATIENCE_S = 30.0


@dataclass(frozen=True)
class CellStage:
    """The stage of one cell in DVC's pipeline.

    Attributes:
        stage: its name in dvc.yaml, which all cells share.
        name: its own, as "compress@CARD-RECIPE".
        card: of the cell.
        recipe: of the cell.
        dependencies: paths of files and folders.
        outputs: paths of all that it writes.
        cached: those of `outputs` that are in DVC's cache, and not in git.
    """

    stage: str
    name: str
    card: str
    recipe: str
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: tuple[str, ...]

    @classmethod
    def of(cls, stage: str, definition: Mapping[str, Any], card: str, recipe: str) -> CellStage:
        """Read it from a stage's definition, with its names put in."""
        axes = {"card": card, "recipe": recipe}

        def paths(key: str, cached: bool | None = None) -> tuple[str, ...]:
            found = []
            for item in definition.get(key) or ():
                path, options = next(iter(item.items())) if isinstance(item, dict) else (item, {})
                if cached is None or (options or {}).get("cache", True) == cached:
                    for axis, value in axes.items():
                        path = path.replace(f"${{item.{axis}}}", value)
                    found.append(path)
            return tuple(found)

        name = f"{stage}@" + "-".join(axes[axis] for axis in definition["matrix"])
        kinds = ("outs", "metrics", "plots")
        return cls(
            *(stage, name, card, recipe, paths("deps")),
            tuple(path for kind in kinds for path in paths(kind)),
            tuple(path for kind in kinds for path in paths(kind, cached=True)),
        )


def _refuse_one_name_for_two(cells: Mapping[tuple[str, str], CellStage]) -> None:
    first: dict[str, CellStage] = {}
    for cell in cells.values():
        other = first.setdefault(cell.name, cell)
        if other is not cell:
            raise RepositoryError(
                f"{other.card} × {other.recipe} and {cell.card} × {cell.recipe} are both "
                f"{cell.name!r} for DVC, which would leave one of them out. Rename a card or a "
                "recipe."
            )


@dataclass(frozen=True)
class Repository:
    """A git repository whose models DVC versions.

    Attributes:
        root: the folder with params.yaml and dvc.yaml; below git's top, or that itself.
        git_folder: where git keeps its own.
        environment: added to that of every command.
    """

    root: Path
    git_folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, environment: Mapping[str, str] | None = None) -> Repository:
        """Open the repository in a folder.

        Raises:
            RepositoryError: if it is none, or in the middle of a merge or the like.
        """
        root = folder.expanduser().resolve()
        missing = [name for name in (PARAMS, PIPELINE) if not (root / name).is_file()]
        git_folder = ask_git(root, "rev-parse", "--absolute-git-dir") if root.is_dir() else ""
        if missing or not git_folder:
            what = f"has no {' and no '.join(missing)}" if missing else "is not under git"
            raise RepositoryError(
                f"{folder} {what}, so it is no repository of models. `zoopress init` makes one."
            )
        if find_spec("dvc") is None:
            raise RepositoryError("DVC is not installed: pip install 'zoopress[versions]'.")
        for name, what in _UNDER_WAY.items():
            if (Path(git_folder) / name).exists():
                raise RepositoryError(
                    f"{root}: {what} is under way. Finish or abort it, then run this again."
                )
        return cls(root, Path(git_folder), environment or {})

    @property
    def head(self) -> str:
        """The newest commit, "" before the first."""
        return ask_git(self.root, "rev-parse", "--verify", "-q", "HEAD")

    def changed(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of some files that are not as the newest commit has them.

        A folder stands for every file in it that git does not ignore.
        """
        given = [str(path) for path in paths if self.root in path.absolute().parents]
        if not given:
            return []
        top = Path(ask_git(self.root, "rev-parse", "--show-toplevel"))
        options = ("--porcelain", "-z", "--no-renames", "--untracked-files=all")
        found = self.git("--literal-pathspecs", "status", *options, "--", *given)
        return [top / line[3:] for line in found.split("\0") if line]

    def committed_text(self, path: Path) -> str | None:
        """Return a file as the newest commit has it, None if it has none."""
        inside = path.absolute().relative_to(self.root).as_posix()
        if not ask_git(self.root, "ls-tree", "HEAD", "--", inside):
            return None
        return self.git("show", f"HEAD:./{inside}")

    def commit(self, paths: Sequence[Path], message: str) -> str | None:
        """Commit some files as they are on disk, and nothing else, staged or not.

        Args:
            paths: files, or folders with what git does not ignore in them.
            message: of the commit.

        Returns:
            The commit; None if nothing of it had changed.

        Raises:
            RepositoryError: if git refuses.
        """
        changed = [str(path) for path in self.changed(paths)]
        if not changed:
            return None
        self._wait_for_index()
        self.git("--literal-pathspecs", "add", "--all", "--", *changed)
        options = ("commit", "-q", "--only", "-m", message)
        self.git("--literal-pathspecs", *self._author(), *options, "--", *changed)
        return self.head

    def upstream(self) -> str | None:
        """Return what `git push` would push to, as "origin/main"; None if there is nothing."""
        return ask_git(self.root, "rev-parse", "--abbrev-ref", "@{upstream}") or None

    def git(self, *arguments: str) -> str:
        """Run git.

        Raises:
            RepositoryError: with what it said.
        """
        return self._run(["git", *arguments], "git", arguments)

    def dvc(self, *arguments: str) -> str:
        """Run DVC; if another of its processes has its lock, wait for that.

        Raises:
            RepositoryError: with what it said.
        """
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
        return self._run(command, "dvc", arguments)

    def dvc_remote(self) -> str | None:
        """Return the name of DVC's default remote, None if there is none."""
        with suppress(RepositoryError):
            return self.dvc("config", "core.remote").strip() or None
        return None

    @cached_property
    def cells(self) -> dict[tuple[str, str], CellStage]:
        """DVC's stage of each cell of the matrix, by card and recipe.

        Raises:
            RepositoryError: if dvc.yaml has no stage with a matrix of cards and recipes, or two
                cells would have a stage of one name.
        """
        pipeline, params = _read(self.root / PIPELINE), _read(self.root / PARAMS)
        names = {"card": params["matrix"]["cards"], "recipe": params["matrix"]["recipes"]}
        for stage, definition in (pipeline.get("stages") or {}).items():
            axes = definition.get("matrix") if isinstance(definition, dict) else None
            if isinstance(axes, dict) and axes.keys() == names.keys():
                self._refuse_dots(names["recipe"], definition.get("params") or [])
                made = {
                    (card, recipe): CellStage.of(stage, definition, card, recipe)
                    for card in names["card"]
                    for recipe in names["recipe"]
                }
                _refuse_one_name_for_two(made)
                return made
        raise RepositoryError(
            f"{self.root / PIPELINE}: no stage has a matrix of 'card' and 'recipe', so it is not "
            "known which stage is which cell. `zoopress init` writes one into an empty folder."
        )

    @property
    def other_stages(self) -> list[str]:
        """Names of the pipeline's stages that are no cells, such as those of charts."""
        own = {cell.stage for cell in self.cells.values()}
        return [name for name in _read(self.root / PIPELINE)["stages"] if name not in own]

    def dependencies(self) -> list[Path]:
        """Return the files and folders that cells depend on, as dvc.yaml has them."""
        paths = dict.fromkeys(path for cell in self.cells.values() for path in cell.dependencies)
        return [self.root / path for path in paths]

    def _refuse_dots(self, recipes: Iterable[object], params: Iterable[object]) -> None:
        dotted = [str(name) for name in recipes if "." in str(name)]
        if dotted and any("recipes.${item.recipe}" in str(one) for one in params):
            raise RepositoryError(
                f"{self.root / PIPELINE}: DVC takes the dot in the name of the recipe "
                f"{dotted[0]!r} for a step into it, and does not find its parameters. Call it "
                f"{dotted[0].replace('.', '-')!r}, or let the stage depend on all recipes: in "
                f"{PIPELINE}, put 'params: [recipes]' in the place of 'recipes.${{item.recipe}}'."
            )

    def outputs(self, stages: Collection[str] | None = None) -> list[Path]:
        """Return what the lock says that stages wrote; of all stages by default."""
        return [
            self.root / output["path"]
            for name, stage in self._locked().items()
            if stages is None or name in stages
            for output in stage.get("outs", ())
        ]

    def outputs_in_git(self) -> list[Path]:
        """Return what the lock says that stages wrote and that git keeps, DVC's cache does not."""
        cached = {self.root / path for cell in self.cells.values() for path in cell.cached}
        return [path for path in self.outputs() if path not in cached]

    def forget_left_over(self, besides: Collection[str]) -> list[Path]:
        """Remove what cells wrote that are no longer in the matrix, also from the lock.

        Git and DVC's cache still have it.

        Args:
            besides: names of files beside their outputs that go with them.

        Returns:
            What was removed.
        """
        lock = self.root / LOCK
        own = {cell.stage for cell in self.cells.values()}
        names = {cell.name for cell in self.cells.values()}
        locked = self._locked()
        left_over = [n for n in locked if n.partition("@")[0] in own and n not in names]
        current = {path for cell in self.cells.values() for path in cell.outputs}
        paths = {
            output["path"]
            for name in left_over
            for output in locked[name].get("outs", ())
            if output["path"] not in current
        }
        removed = {self.root / path for path in paths}
        removed |= {path.parent / name for path in removed for name in besides}
        for path in removed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # something of the user's is in there
                path.parent.rmdir()
        if left_over:
            data = _read(lock)
            data["stages"] = {n: stage for n, stage in locked.items() if n not in left_over}
            write_atomic(lock, yaml.safe_dump(data, sort_keys=False))
        return sorted(removed)

    def _locked(self) -> dict[str, Any]:
        lock = self.root / LOCK
        return _read(lock).get("stages") or {} if lock.is_file() else {}

    def _author(self) -> list[str]:
        """Return options that say who commits, where git does not know."""
        unknown = [key for key in FALLBACK_AUTHOR if not ask_git(self.root, "config", key)]
        return [part for key in unknown for part in ("-c", f"{key}={FALLBACK_AUTHOR[key]}")]

    def _wait_for_index(self) -> None:
        """Give another git process the time to finish."""
        lock, end = self.git_folder / "index.lock", time.monotonic() + _LOCK_PATIENCE_S
        while lock.exists():
            if time.monotonic() > end:
                raise RepositoryError(
                    f"{lock} is there, so another git process works in {self.root}, or was killed "
                    "while it did. If none runs, delete that file, then run this again."
                )
            time.sleep(0.2)

    def _run(self, command: list[str], tool: str, arguments: Sequence[str]) -> str:
        # In a session of its own, so that what kills this process' group does not reach it.
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, err = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            process.communicate()
            raise
        if process.returncode != 0:
            said = "\n".join(line for line in (err + out).splitlines() if line.strip())[-2000:]
            said = re.sub(r"(?<=://)[^/@\s]+@", "", said)  # a remote's address may hold a password
            verb = next((word for word in arguments if word.isalpha()), "")
            raise RepositoryError(f"`{tool} {verb}` failed in {self.root}: {said}")
        return out

    def _environment(self) -> dict[str, str]:
        # Git's own hooks set the first three, to another repository maybe. With the last one,
        # `zoopress run` would make a flow run of each cell that it finds in the store.
        unwanted = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "PREFECT_API_URL")
        kept = {key: value for key, value in os.environ.items() if key not in unwanted}
        tools = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        settings = {"PATH": tools, "GIT_TERMINAL_PROMPT": "0", "DVC_NO_ANALYTICS": "1"}
        return {**kept, **settings, **self.environment}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RepositoryError(f"{path}: cannot be read: {error}") from error
    return data if isinstance(data, dict) else {}
