"""What of the machine this process may use: memory and cores, whoever limits them.

the machine     all that is installed; of cores, those that the scheduler's affinity leaves
control groups  version 1 and 2: containers, systemd units and slices, most batch systems. The
                limits of every group above count as well: the smallest holds
Slurm           what a job asked for, as Slurm tells it in variables, also where it enforces none
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 62
"""Version 1 writes a number near 2⁶³ where there is no limit."""
_SLURM_UNITS = {"": 20, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class MemoryLimit:
    """How much memory there is, and for whom.

    Attributes:
        bytes: of it.
        scope: what it is the limit of; processes with one scope share the memory. Empty for the
            machine itself.
    """

    bytes: int
    scope: str = ""


def memory_limit(root: Path = Path("/"), variables: Mapping[str, str] | None = None) -> MemoryLimit:
    """Return the smallest limit on this process's memory.

    Args:
        root: of the file system.
        variables: of the environment; this process's own by default.
    """
    import psutil

    limits = [MemoryLimit(int(psutil.virtual_memory().total))]
    limits += _of_groups(root, "memory", _memory_of_group)
    limits += _slurm_memory(os.environ if variables is None else variables)
    return min(limits, key=lambda limit: limit.bytes)


def usable_cores(root: Path = Path("/"), variables: Mapping[str, str] | None = None) -> int:
    """Return how many cores this process may keep busy, 1 at least; a part of one counts as one.

    Args:
        root: of the file system.
        variables: of the environment; this process's own by default.
    """
    given = os.environ if variables is None else variables
    affinity = getattr(os, "sched_getaffinity", None)
    counts: list[float] = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    counts += _of_groups(root, "cpu", _cores_of_group)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if given.get(name, "").isdigit() and int(given[name]):
            counts.append(int(given[name]))
            break
    return max(1, math.ceil(min(counts)))


def _of_groups(root: Path, controller: str, read: Callable[[Path], object]) -> list:  # type: ignore[type-arg]
    return [found for group in _groups(root, controller) if (found := read(group)) is not None]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of those above them."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for kind, options, inside, folder in mounts:
            second = kind == "cgroup2" and number == "0" and not controllers
            first = kind == "cgroup" and controller in controllers.split(",")
            if not second and not (first and controller in options):
                continue
            # A container may see its own group as the mount's root, or by the path outside.
            relative = path[len(inside) :] if path.startswith(inside.rstrip("/") + "/") else path
            if inside != "/" and relative == path:
                relative = "/"
            group = folder / relative.strip("/")
            while group != folder:
                yield group
                group = group.parent
            yield folder


def _mounts(root: Path) -> Iterator[tuple[str, set[str], str, Path]]:
    """Yield kind, options, inner root and folder of each mounted hierarchy of control groups."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, after = line.partition(" - ")
        kind, _, rest = after.partition(" ")
        if kind in ("cgroup", "cgroup2") and len(fields.split()) > 4:
            inside, folder = fields.split()[3:5]
            yield kind, set(rest.split(" ")[-1].split(",")), inside, root / folder.lstrip("/")


def _memory_of_group(group: Path) -> MemoryLimit | None:
    # Above "high", a group is slowed down until it is of no use, without being ended.
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    found = [int(text) for name in names if (text := _text(group / name).strip()).isdigit()]
    limits = [number for number in found if 0 < number < _UNLIMITED]
    return MemoryLimit(min(limits), str(group)) if limits else None


def _cores_of_group(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _text(group / "cpu.cfs_quota_us").strip()
        period = _text(group / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        return int(quota) / int(period)
    return None


def _slurm_memory(variables: Mapping[str, str]) -> list[MemoryLimit]:
    scope = f"slurm {variables.get('SLURM_JOB_ID', '')}"
    counts = {"SLURM_MEM_PER_NODE": "", "SLURM_MEM_PER_CPU": "SLURM_CPUS_ON_NODE"}
    counts["SLURM_MEM_PER_GPU"] = "SLURM_GPUS_ON_NODE"
    limits = []
    for name, count in counts.items():
        amount = re.fullmatch(r"(\d+)([KMGT]?)", variables.get(name, ""))
        times = variables.get(count, "") if count else "1"
        # A node's memory of 0 is all of it.
        if amount and int(amount[1]) and times.isdigit() and int(times):
            size = int(amount[1]) << _SLURM_UNITS[amount[2]]
            limits.append(MemoryLimit(size * int(times), scope))
    return limits


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""
