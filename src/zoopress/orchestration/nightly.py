"""The nightly refresh: follow the models that moved, recompress what changed, version, publish.

    cards ─▶ zoo ─▶ repro ─▶ commit ─▶ push ─▶ publish ─▶ record ─▶ prune

Each step looks at what is on disk, in git, in DVC and on the Hub, and does what is missing there.
Nothing else is kept, so a refresh that was killed anywhere is continued by the next one. A step
that fails for one card or cell is a problem that is told at the end, and does not stop the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoopress.cards import find_card
from zoopress.cells.selection import Selection, select_cells
from zoopress.errors import RepositoryError, ZoopressError
from zoopress.orchestration.nightly_summary import NightlySummary
from zoopress.orchestration.notices import read_on_failure, tell_of_failure
from zoopress.orchestration.pins import follow, look_at_card
from zoopress.orchestration.publishing import publish_runs, read_publish_section
from zoopress.orchestration.retention import prune, read_retention
from zoopress.pipeline.compress import run_inline
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.provenance import LOCK, versioned_state
from zoopress.publishing.publish import PushOptions
from zoopress.publishing.published import PUBLISHED
from zoopress.repository import PARAMS, PIPELINE, Repository

RunZoo = Callable[[Sequence[str], str, str], dict[str, Any]]
"""Runs cards (references) of a matrix (file) into a folder; returns the leaderboard's `as_dict`."""
Execute = Callable[[str, Callable[[], Any]], Any]
STEPS = {
    "cards": "asking whether models moved",
    "zoo": "compressing what changed",
    "repro": "versioning the results",
    "commit": "committing them",
    "push": "pushing them",
    "publish": "publishing what passed its gates",
    "record": "committing where it was published",
}
PRUNE = {"prune": "removing what nothing needs from the store"}
"""The last step, if params.yaml says what may go."""


@dataclass(frozen=True)
class NightlyOptions:
    """How to refresh.

    Attributes:
        push_git: whether to push commits to the branch's upstream.
        publish: whether to publish, where params.yaml says where to.
        store: where stage results are kept; None for the user's own.
        on_failure: command that is run if not all is done; what params.yaml says by default.
    """

    push_git: bool = False
    publish: bool = True
    store: str | None = None
    on_failure: str | None = None


def refresh(
    folder: Path,
    options: NightlyOptions,
    plugins: Plugins,
    run_zoo: RunZoo,
    reporter: Reporter | None = None,
    execute: Execute = run_inline,
) -> NightlySummary:
    """Refresh a repository of models.

    Args:
        folder: the repository.
        options: how.
        plugins: what is registered.
        run_zoo: computes cells.
        reporter: gets a line before each step, and every problem; nobody by default.
        execute: runs each step, given its name; an engine such as Prefect hooks in here.

    Raises:
        RepositoryError: if it cannot begin: the folder is no repository, another refresh is at
            work in it, or params.yaml or dvc.yaml is not committed.
        InputError: if params.yaml is wrong.
    """
    repository = Repository.open(folder, _environment(options.store))
    with _alone(repository), _telling(repository, options, reporter or Reporter()):
        night = _Night(repository, options, plugins, run_zoo, reporter or Reporter())
        steps = {**STEPS, **(PRUNE if night.retention else {})}
        for number, (name, title) in enumerate(steps.items(), start=1):
            night.reporter.line(f"nightly {number}/{len(steps)}  {name}: {title}")
            execute(name, getattr(night, name))
        night.tell_of_failure()
        return night.summary


def _environment(store: str | None) -> dict[str, str]:
    """Return what leads `zoopress run`, which DVC runs, to the same store."""
    if store is None:
        return {}
    return {"ZOOPRESS_STORE": store if "://" in store else str(Path(store).absolute())}


@contextmanager
def _alone(repository: Repository) -> Iterator[None]:
    """Hold the lock of a repository; the kernel frees it if this process dies."""
    path = repository.git_folder / "zoopress" / "nightly.lock"
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RepositoryError(
            f"Another refresh is at work in {repository.root}. Wait until it is done."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _telling(repository: Repository, options: NightlyOptions, reporter: Reporter) -> Iterator[None]:
    """Run the user's command if a refresh cannot go on."""
    try:
        yield
    except ZoopressError as error:
        command = read_on_failure(str(repository.root / PARAMS), options.on_failure)
        if command is not None:
            summary = f"zoopress nightly in {repository.root} stopped"
            tell_of_failure(command, summary, {"problems": [str(error)]}, reporter.warn)
        raise


class _Night:
    """One refresh: a method a step."""

    def __init__(
        self,
        repository: Repository,
        options: NightlyOptions,
        plugins: Plugins,
        run_zoo: RunZoo,
        reporter: Reporter,
    ) -> None:
        self.repository, self.options, self.plugins = repository, options, plugins
        self.run_zoo, self.reporter = run_zoo, reporter
        self.root = repository.root
        self.summary = NightlySummary(str(self.root))
        self.section = read_publish_section(self.root / PARAMS)
        self.retention = read_retention(self.root / PARAMS)
        self.on_failure = read_on_failure(str(self.root / PARAMS), options.on_failure)
        self.selection: Selection = select_cells([], [], str(self.root / PARAMS), plugins)
        self.cells = repository.cells
        self._refuse_edits()
        self.done: list[str] = []
        """Stages of DVC whose cells are done."""
        self.left_over: list[Path] = []
        """What cells wrote that are no longer in the matrix, now removed."""

    def _edits(self) -> list[Path]:
        """Return what models depend on and no commit has, but for their cards."""
        own = [path for path in self.repository.dependencies() if path not in self._cards()]
        return self.repository.changed([self.root / PARAMS, self.root / PIPELINE, *own])

    def _cards(self) -> set[Path]:
        found = set()
        for card in self.selection.cards:
            with suppress(ZoopressError):  # the zoo's run says what is wrong with it
                found.add(find_card(card.reference, self.plugins).absolute())
        return found

    def _refuse_edits(self) -> None:
        if edited := self._edits():
            raise RepositoryError(
                f"{self.root}: there are changes in {self._shown(edited)} that are not committed, "
                "and models depend on that. Commit or discard them, then run this again."
            )

    def _shown(self, paths: Sequence[Path]) -> str:
        names = [str(path.relative_to(self.root)) for path in paths]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    def cards(self) -> None:
        """Ask which models moved, and write their new commits into their cards."""
        for selected in self.selection.cards:
            card = look_at_card(selected, self.repository, self.plugins)
            if card.left_out is None and selected.item is not None:
                try:
                    card = follow(card, selected.item, self.plugins)
                except (ZoopressError, OSError) as error:
                    self._problem(f"{card.name} keeps its revision: {error}")
            self.summary.cards.append(card)
            if card.left_out is not None:
                self._problem(f"{card.name} is left out: {card.left_out}")

    def zoo(self) -> None:
        """Compute every cell, into the store; from there DVC's own run takes it."""
        references = [card.reference for card in self.summary.cards if card.left_out is None]
        if not references:
            return
        scratch = self.repository.git_folder / "zoopress" / "out"
        try:
            board = self.run_zoo(references, str(self.root / PARAMS), str(scratch))
        finally:
            self._keep_logs(scratch / "logs")
            shutil.rmtree(scratch, ignore_errors=True)
        if any(cell["state"] == "stopped" for cell in board["cells"]):
            raise KeyboardInterrupt
        # The selection has cards and recipes as the matrix has them, in its order.
        cells = ((card.name, recipe.name) for card, recipe in self.selection.cells())
        stages = dict(zip(cells, (cell.name for cell in self.cells.values()), strict=True))
        for cell in board["cells"]:
            name = f"{cell['card']} × {cell['recipe']}"
            if cell["state"] != "done":
                log = self.logs / cell["card"] / f"{cell['recipe']}.log"
                where = f"\nIts log: {log}" if log.is_file() else ""
                self.summary.failed[name] = f"{cell['reason']}{where}"
                continue
            self.done.append(stages[cell["card"], cell["recipe"]])
            self.summary.done += 1
            if any(stage["computed"] for stage in cell["figures"]["stages"]):
                self.summary.computed.append(name)

    @property
    def logs(self) -> Path:
        """The logs of the last refresh's cells; no part of the working tree."""
        return self.repository.git_folder / "zoopress" / "logs"

    def _keep_logs(self, made: Path) -> None:
        with suppress(OSError):  # logs are to look at
            shutil.rmtree(self.logs, ignore_errors=True)
            made.rename(self.logs)

    def repro(self) -> None:
        """Let DVC run what is not in its lock; the store has all of it."""
        self.left_over = self.repository.forget_left_over((".gitignore", PUBLISHED))
        for folder in sorted({path.parent for path in self.left_over}):
            self.reporter.line(f"{self._shown([folder])} is no longer in the matrix: removed")
        if len(self.done) == len(self.cells):
            self._dvc("repro", "--keep-going")
        elif self.done:
            self._dvc("repro", "--keep-going", *sorted(self.done))
            # They wait for all cells, and would be left as they are: draw what there is.
            for stage in self.repository.other_stages:
                self._dvc("repro", "--single-item", stage)

    def _dvc(self, *arguments: str) -> None:
        self._try(lambda: self.repository.dvc(*arguments))

    def commit(self) -> None:
        """Commit cards that moved, the lock, and results that git keeps."""
        if edited := self._edits():
            self._problem(
                f"nothing was committed: {self._shown(edited)} changed while models were computed, "
                "so no commit would reproduce them. Commit or discard that, then run this again."
            )
            return
        if self.done and not self._is_current():
            return
        outputs = self.repository.outputs_in_git()
        paths = [self.root / LOCK, *outputs, *self.left_over]
        paths += [output.parent / ".gitignore" for output in outputs]
        paths += [Path(card.reference) for card in self.summary.cards if card.moved]
        changed = self.repository.changed(paths)
        self.summary.commit = self._try(
            lambda: self.repository.commit(changed, self._message(changed))
        )

    def _is_current(self) -> bool:
        """Tell whether the lock has what the cells that are done depend on, as it is on disk."""
        said = self._try(lambda: self.repository.dvc("status", "--json", *sorted(self.done)))
        stale = sorted(json.loads(said)) if said else []
        if stale:
            self._problem(
                f"nothing was committed: what {', '.join(stale)} depends on changed while it was "
                "computed. Run this again."
            )
        return said is not None and not stale

    def _message(self, changed: Collection[Path]) -> str:
        moved = [card for card in self.summary.cards if card.moved]
        runs = sorted({run for run in self._runs() if any(run in path.parents for path in changed)})
        title = f"Nightly refresh: {_count(len(moved), 'card')} moved, "
        title += f"{_count(len(runs), 'model')} changed"
        body = [f"{card.name}: {card.branch} {card.before} → {card.after}" for card in moved]
        body += [f"{run.relative_to(self.root)}" for run in runs]
        return "\n".join([title, "", *body]) if body else title

    def push(self) -> None:
        """Push to DVC's default remote, and to git's upstream if that is wanted."""
        remote = self.repository.dvc_remote()
        if remote and self._try(lambda: self.repository.dvc("push")) is not None:
            self.summary.pushed.append(f"dvc {remote}")
        self._push_git()

    def _push_git(self) -> None:
        if not self.options.push_git:
            return
        upstream = self.repository.upstream()
        if upstream is None:
            self._problem(
                "git's branch has no upstream to push to. Set one: git push -u origin HEAD"
            )
        elif self._try(lambda: self.repository.git("push", "--quiet")) is not None:
            where = f"git {upstream}"
            self.summary.pushed += [where] if where not in self.summary.pushed else []

    def publish(self) -> None:
        """Publish every cell that is done and that a commit has in DVC's lock."""
        if self.section is None or not self.options.publish:
            return
        runs = [run for run in self._runs(self.done) if self._is_versioned(run)]
        options = PushOptions(
            private=self.section.private,
            allow_low_quality=self.section.allow_low_quality,
            install=self.section.install,
            allow_worse=self.section.allow_worse,
            worse_margin=self.section.worse_margin,
        )
        for item in publish_runs(runs, self.section.repo, options, self.plugins, self.reporter):
            self.summary.published.append(item)
            if item.state == "failed":
                self._problem(f"{item.folder} was not published: {item.reason}")

    def _is_versioned(self, run: Path) -> bool:
        """Tell whether a commit reproduces a run; publish none of which that is not so."""
        try:
            sha256 = json.loads((run / "report.json").read_bytes())["artifact_sha256"]
        except (OSError, ValueError, TypeError, LookupError):
            return True  # publishing says what is wrong with it
        if versioned_state(run, sha256):
            return True
        self._problem(f"{run} was not published: no commit has it in {LOCK} yet.")
        return False

    def record(self) -> None:
        """Commit the notes on what was published."""
        notes = [run / PUBLISHED for run in self._runs()]
        self.summary.record = self._try(
            lambda: self.repository.commit(notes, "Nightly refresh: what was published, and where")
        )
        if self.summary.record:
            self._push_git()

    def prune(self) -> None:
        """Remove from the store what params.yaml says may go, and nothing refers to."""
        if self.retention is not None:
            section = self.retention
            self.summary.removed = self._try(
                lambda: len(prune(self.options.store, section, self.root).removed)
            )

    def tell_of_failure(self) -> None:
        """Run the user's command if not all is done."""
        if self.on_failure is not None and not self.summary.complete:
            data = self.summary.as_dict()
            tell_of_failure(self.on_failure, self.summary.line, data, self.reporter.warn)

    def _runs(self, stages: Collection[str] | None = None) -> list[Path]:
        """Return the folders of runs: where the lock has an artifact."""
        chosen = [cell.name for cell in self.cells.values()] if stages is None else stages
        outputs = self.repository.outputs(chosen)
        return sorted({path.parent for path in outputs if path.name == "artifact"})

    def _try(self, work: Callable[[], Any]) -> Any:
        """Do something; if it fails, note why and go on."""
        try:
            return work()
        except ZoopressError as error:
            self._problem(str(error))
            return None

    def _problem(self, text: str) -> None:
        if text not in self.summary.problems:
            self.summary.problems.append(text)
            self.reporter.warn(text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
