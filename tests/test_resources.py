"""Limits of containers, systemd and Slurm, read from files and variables as they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoopress.resources import memory_limit, usable_cores

SECOND = "0::{path}\n"
SECOND_MOUNT = "30 20 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST_MOUNT = (
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def second(root: Path, path: str, files: dict[str, str], mounted: str = "/") -> Path:
    return write(
        root,
        {
            "proc/self/cgroup": SECOND.format(path=path),
            "proc/self/mountinfo": SECOND_MOUNT.format(root=mounted),
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


def test_a_unit_is_held_to_its_slices_limit_as_well(tmp_path: Path) -> None:
    service = "system.slice/zoo.slice/nightly.service"
    root = second(
        tmp_path,
        f"/{service}",
        {
            f"{service}/memory.max": "max\n",
            f"{service}/memory.high": f"{3 << 29}\n",
            "system.slice/zoo.slice/memory.max": f"{1 << 30}\n",
            "system.slice/memory.max": "max\n",
            f"{service}/cpu.max": "max 100000\n",
            "system.slice/zoo.slice/cpu.max": "50000 100000\n",
        },
    )
    limit = memory_limit(root, {})
    assert limit.bytes == 1 << 30
    assert limit.scope.endswith("system.slice/zoo.slice")  # whom it is shared with
    assert usable_cores(root, {}) == 1


@pytest.mark.parametrize("mounted", ["/", "/docker/abc"])
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path, mounted: str) -> None:
    path = "/" if mounted == "/" else "/docker/abc"
    root = second(tmp_path, path, {"memory.max": "536870912\n"}, mounted)
    assert memory_limit(root, {}).bytes == 1 << 29


def test_version_1_has_a_hierarchy_for_each_controller(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n",
            "proc/self/mountinfo": FIRST_MOUNT.format(root="/"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1073741824\n",
            "sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit(root, {}).bytes == 1 << 30
    assert usable_cores(root, {}) == 1


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({"SLURM_MEM_PER_NODE": "512"}, 512 << 20),
        ({"SLURM_MEM_PER_NODE": "1G"}, 1 << 30),
        ({"SLURM_MEM_PER_CPU": "256", "SLURM_CPUS_ON_NODE": "3"}, 768 << 20),
        ({"SLURM_MEM_PER_GPU": "512", "SLURM_GPUS_ON_NODE": "2"}, 1 << 30),
    ],
)
def test_what_a_job_of_slurm_asked_for_is_its_limit(
    tmp_path: Path, variables: dict[str, str], size: int
) -> None:
    limit = memory_limit(tmp_path, {**variables, "SLURM_JOB_ID": "7"})
    assert (limit.bytes, limit.scope) == (size, "slurm 7")


@pytest.mark.parametrize(
    "variables",
    [{}, {"SLURM_MEM_PER_NODE": "0"}, {"SLURM_MEM_PER_NODE": "lots"}, {"SLURM_MEM_PER_CPU": "9"}],
)
def test_without_a_limit_the_machine_is(tmp_path: Path, variables: dict[str, str]) -> None:
    assert memory_limit(tmp_path, variables).scope == ""
    assert usable_cores(tmp_path, variables) >= 1


def test_slurms_cores_are_those_of_a_task(tmp_path: Path) -> None:
    given = {"SLURM_CPUS_ON_NODE": "64", "SLURM_CPUS_PER_TASK": "1"}
    assert usable_cores(tmp_path, given) == 1
