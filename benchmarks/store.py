"""Measure what the store costs, empty and with many results in it.

CPU time of this process and wall time; for operations on one key, the mean of many different keys.
A result is a record of about 2 kB and two files of 1 kB, so that the store itself is measured, not
the hashing of weights (which goes at the speed of SHA-256, about 1 GB a second and core).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results_files import table, write

from zoopress.store import Store, digest
from zoopress.store.collect import Policy
from zoopress.store.entry import RECORD, seal
from zoopress.store.upkeep import collect, list_stored

CONTENT = b"w" * 1000
STAGE = {
    "technique": "weight_quantization",
    "config": {"bits": 4, "group_size": 64, "kinds": ["linear", "embedding"]},
    "touched": [f"encoder.layer.{i}.attention.self.query.weight" for i in range(24)],
    "claims": [{"quantity": "bits per weight", "asked": 4.0, "reached": 4.25}],
    "weight_bytes": 11_000_000,
    "fidelity": {"cosine": 0.99, "samples": 128},
}


def write_files(folder: Path) -> None:
    (folder / "artifact").mkdir()
    for name in ("zoopress.json", "model.safetensors"):
        (folder / "artifact" / name).write_bytes(CONTENT)


def fill(store: Store, keys: Sequence[str]) -> None:
    """Put results into the store, without forcing each to disk."""
    for key in keys:
        folder = store.local.path(key)
        folder.mkdir(parents=True)
        write_files(folder)
        (folder / RECORD).write_text(seal(key, STAGE, folder))


def measure(work: Callable[[str], Any], keys: Sequence[str]) -> dict[str, float]:
    """Return mean milliseconds of CPU and wall time of work on each key."""
    cpu, wall = time.process_time(), time.perf_counter()
    for key in keys:
        work(key)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_ms": 1e3 * cpu / len(keys), "wall_ms": 1e3 * wall / len(keys)}


def measure_all(root: Path, count: int, repeat: int) -> dict[str, dict[str, float]]:
    """Measure every operation on a store with so many results."""
    store = Store(root)
    known = [digest(["known", i]) for i in range(count)]
    unknown = [digest(["unknown", i]) for i in range(repeat)]
    fill(store, known)
    sample = known[:: max(1, count // repeat)][:repeat] or []

    def open_and_miss(key: str) -> None:
        assert Store(root).find(key) is None

    def claim(key: str) -> None:
        with store.claim(key):
            pass

    def commit(key: str) -> None:
        with store.claim(key) as claimed:
            write_files(claimed.staging)
            claimed.commit(STAGE)

    def use(key: str) -> None:
        with store.using([key] * 6):
            pass

    figures = {}
    figures["list everything"] = measure(lambda _: list(list_stored(store)), ["once"])
    policy = Policy(max_size_bytes=0, grace_s=0)
    figures["gc --dry-run, all to go"] = measure(
        lambda _: collect(store, policy, dry_run=True), ["once"]
    )
    if sample:
        figures["find a result that is there"] = measure(store.find, sample)
    figures["open the store, find nothing"] = measure(open_and_miss, unknown)
    figures["register a run and end it"] = measure(use, unknown)
    figures["claim a key and give it up"] = measure(claim, unknown)
    figures["claim and commit a result"] = measure(commit, unknown)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1000, 100_000])
    parser.add_argument("--repeat", type=int, default=200, help="keys of each operation")
    parser.add_argument("--folder", type=Path, help="where to make the stores (a temporary one)")
    options = parser.parse_args()

    from zoopress.evaluation.machine import describe_machine

    results = {}
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results[count] = measure_all(Path(folder) / "store", count, options.repeat)
        print(count, json.dumps(results[count], indent=1), flush=True)

    names = max(results.values(), key=len)
    header = ["operation", *(f"{count:,} results" for count in results)]
    rows = [
        [
            name,
            *(
                f"{found[name]['cpu_ms']:.2f} / {found[name]['wall_ms']:.2f}"
                if name in found
                else "–"
                for found in results.values()
            ),
        ]
        for name in names
    ]
    lines = [
        "CPU / wall milliseconds, each operation once.",
        "",
        *table(header, rows),
        "",
        "The wall time of a commit is that of forcing three files and four folders to disk. What "
        "finds, claims and commits a key lists no folder, so it does not depend on how many "
        "results there are; listing and collecting read every record.",
    ]
    write(
        "store",
        "The store",
        lines,
        {
            "command": "python benchmarks/store.py",
            "machine": describe_machine(),
            "results": {str(count): found for count, found in results.items()},
        },
    )


if __name__ == "__main__":
    main()
