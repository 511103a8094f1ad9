"""Check everything that a plugin registers, as `zoopress plugin check` does."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoopress.errors import GateError, InputError, PluginError, StageError, ZoopressError, nearest
from zoopress.interface import HOOK_INTERFACE, spelled
from zoopress.plugins import Plugins, registries
from zoopress.progress import Reporter
from zoopress.testing.conformance import ConformanceError
from zoopress.testing.hook_checks import Request, Step, steps
from zoopress.testing.moved_names import moved_names, source_files

State = Literal["passed", "refused", "outdated", "failed"]
"""Refused: what it was tried on does not fit, which it said in words. Outdated: it works today."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        plugin: its name.
        distribution: which it comes from.
        subject: what was checked, such as "technique row_pruning", or "plugin".
        on: the card it was checked on, or the tiny models; "" if on nothing.
        state: how it ended.
        text: what is wrong and what to do, or what is worth knowing.
        seconds: what the check took.
    """

    plugin: str
    distribution: str
    subject: str
    on: str
    state: State
    text: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        where = f" on {self.on}" if self.on else ""
        text = f": {self.text}" if self.text else ""
        return f"{self.state:<9} {self.plugin}: {self.subject}{where}{text}"


@dataclass(frozen=True)
class Subject:
    """One plugin of a distribution."""

    plugin: str
    distribution: str
    version: str = ""


def chosen_plugins(plugins: Plugins, name: str | None) -> list[Subject]:
    """Return the plugins of a name or a distribution; by default all that zoopress does not bring.

    Raises:
        InputError: if there are none.
    """
    plugins.check()
    origins = plugins.origins
    subjects = [Subject(each, o.distribution, o.version) for each, o in origins.items()]
    known = {(one.plugin, one.distribution) for one in subjects}
    subjects += [
        Subject(one.name, one.distribution)
        for one in plugins.broken
        if (one.name, one.distribution) not in known
    ]
    if name is None:
        chosen = [one for one in subjects if one.distribution != "zoopress"]
        if not chosen:
            raise InputError(
                "No plugin is installed besides those of zoopress. Install one, such as a folder "
                "that `zoopress plugin new` wrote: pip install -e FOLDER; or name one."
            )
        return chosen
    wanted = _normal(name)
    chosen = [one for one in subjects if name == one.plugin or wanted == _normal(one.distribution)]
    if not chosen:
        if name in plugins.blocked:
            raise InputError(f"Plugin {name!r} is blocked; take it out of ZOOPRESS_BLOCK_PLUGINS.")
        names = {one.plugin for one in subjects} | {one.distribution for one in subjects}
        raise InputError(
            f"No plugin or distribution {name!r} is installed.{nearest(name, names)} A plugin's "
            "distribution announces its module in the entry-point group 'zoopress'."
        )
    return chosen


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def check_plugin(subject: Subject, request: Request, reporter: Reporter) -> Iterator[Finding]:
    """Yield what is found of one plugin: itself, what it registers, names that have moved."""
    plugins = request.plugins
    name, distribution = subject.plugin, subject.distribution
    files = _files(subject, plugins)
    broken = [one for one in plugins.broken if (one.name, one.distribution) == (name, distribution)]
    for one in broken:
        yield Finding(name, distribution, "plugin", "", "failed", str(one))
    if not broken:
        yield Finding(name, distribution, "plugin", "", "passed", _made_for(plugins, name))
    for clash in plugins.clashes:
        if (clash.plugin, clash.distribution) == (name, distribution):
            thing = f"{clash.kind} {clash.name}"
            yield Finding(name, distribution, thing, "", "failed", clash.reason)
    for moved in moved_names(files):
        yield Finding(name, distribution, "plugin", "", "outdated", f"{moved}. Replace the name")
    if name not in plugins.origins or plugins.origins[name].distribution != distribution:
        return  # of its name there is another one, which registers what is registered
    for kind, thing in plugins.registered_by(name):
        title = f"{kind} {thing}"
        waiting = steps(request, kind, thing)
        while (found := _next(waiting, files)) is not None:
            start = time.perf_counter()
            if isinstance(found, str):
                yield Finding(name, distribution, title, "", "failed", found)
                continue
            on, check = found
            place = f" on {on}" if on else ""
            with reporter.step(f"checking {name}: {title}{place}", closing_line=False):
                state, text = _ran(on, check, files)
            seconds = time.perf_counter() - start
            yield Finding(name, distribution, title, on, state, text, seconds)


def _next(waiting: Iterator[Step], files: Sequence[Path]) -> Step | str | None:
    """Return the next check, or what kept it from being made; None after the last."""
    try:
        return next(waiting, None)
    except (Exception, SystemExit) as error:
        return _told(error, files)


def _ran(on: str, check: Callable[[], object], files: Sequence[Path]) -> tuple[State, str]:
    """Run a check; whatever the plugin does, what comes out is a state and words."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the plugin prints is no result of ours
            check()
    except (ConformanceError, PluginError, GateError) as error:
        return "failed", str(error)
    except (StageError, InputError) as error:
        return "refused" if on else "failed", str(error)
    except (Exception, SystemExit) as error:
        return "failed", _told(error, files)
    return "passed", ""


def _told(error: BaseException, files: Sequence[Path]) -> str:
    """Return what an error says, with the plugin's line that it comes from."""
    if isinstance(error, ZoopressError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = {str(file) for file in files}
    inside = [frame for frame in frames if str(Path(frame.filename).resolve()) in own]
    where = (inside or list(frames))[-1:]
    place = "".join(f" ({frame.filename}:{frame.lineno})" for frame in where)
    return f"{type(error).__name__}: {error}{place}"


def _made_for(plugins: Plugins, name: str) -> str:
    stated = plugins.made_for.get(name)
    if stated is None and plugins.origins[name].distribution == "zoopress":
        return ""
    if stated is None:
        return (
            f"it does not say which hooks it was made for; write zoopress_hook_interface = "
            f'"{spelled(HOOK_INTERFACE)}" into its module'
        )
    here = "" if stated == HOOK_INTERFACE else f"; here is {spelled(HOOK_INTERFACE)}"
    return f"made for hook interface {spelled(stated)}{here}"


def _files(subject: Subject, plugins: Plugins) -> list[Path]:
    """Return a plugin's own source files; zoopress's are held to it by its tests."""
    module = plugins.modules.get(subject.plugin)
    if module is None or subject.distribution == "zoopress":
        return []
    owned = set(plugins.registered_by(subject.plugin))
    kinds = {kind for kind, _ in owned}
    references = [
        plugins.references[hook][name].partition(":")[0]
        for kind, hook in registries().items()
        if kind in kinds
        for name in plugins.references[hook]
        if (kind, name) in owned
    ]
    others = [each for each in references if not each.startswith("zoopress.")]
    return source_files(subject.distribution, [module, *others])
