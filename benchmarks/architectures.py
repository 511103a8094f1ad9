"""Compress every family of transformers as a tiny model, and count what works, refuses or crashes.

Each family is built from its config, made small (`tiny_transformers.py`), saved as a checkpoint,
and goes through the ordinary main path: card, recipe, stages, gates, artifact. What came out is
opened again and compared with what the stage measured. Of the evaluation only fidelity is kept.

    python benchmarks/architectures.py --only bert,llama --technique neuron_pruning

With `--plain` the networks of `plain_networks/` are walked instead, each from a factory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECIPES: dict[str, list[dict[str, Any]]] = {
    "neuron_pruning": [{"technique": "neuron_pruning", "sparsity": 0.3}],
    "pruning_4bit_coding": [
        {"technique": "magnitude_pruning", "sparsity": 0.5},
        {"technique": "weight_quantization", "bits": 4},
        {"technique": "entropy_coding"},
    ],
    "truncated_svd": [{"technique": "truncated_svd", "parameters": 0.5}],
    "rate_distortion": [{"technique": "rate_distortion_quantization", "target": {"ratio": 4}}],
    "float16": [{"technique": "float_precision", "dtype": "float16"}],
}
PLAIN_RECIPES = {
    **RECIPES,
    # A quarter of a few kilobytes leaves no room for names and headers.
    "rate_distortion": [
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 6}}
    ],
    "float16": [{"technique": "float_precision"}],
}
SECONDS = 120


ENDS = {"ok": "works", "refused": "refused", "crash": "crashes", "timeout": "too slow"}
"""How an attempt ends, and what a table calls that."""


class OutOfTime(BaseException):
    """The clock ran out. No `Exception`, so that no code takes it for the model's own failure."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="*", help="families, shell patterns, with commas between")
    parser.add_argument("--technique", default="*", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--every", type=int, default=1, help="take every n-th family only")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("architectures.jsonl"))
    parser.add_argument("--again", default="", help="do again what ended so: " + ",".join(ENDS))
    parser.add_argument("--page", action="store_true", help="write results/architectures.md")
    parser.add_argument("--plain", action="store_true", help="walk plain networks instead")
    given = parser.parse_args()
    chosen = [n for n in _names(given.plain) if _matches(n, given.only)][:: given.every]
    recipes = [name for name in RECIPES if _matches(name, given.technique)]
    done = read(given.log, set(filter(None, given.again.split(","))))
    todo = [
        f for f in chosen if any((f, r) not in done and (f, "build") not in done for r in recipes)
    ]
    work = partial(walk_plain if given.plain else walk, recipes=recipes, done=frozenset(done))
    with given.log.open("a", encoding="utf-8") as log:
        if given.processes == 1:
            results: Iterator[Any] = map(work, todo)
            _record(results, log)
        else:
            with ProcessPoolExecutor(given.processes, max_tasks_per_child=40) as pool:
                _record(pool.map(work, todo), log)
    lines = summary(read(given.log, set()), chosen, recipes)
    if not given.page:
        print("\n".join(lines))
        return
    from results_files import write

    from zoopress.evaluation.machine import describe_machine

    figures = {
        "machine": describe_machine(),
        "command": " ".join(["python benchmarks/architectures.py", *sys.argv[1:]]),
        "rows": sorted(read(given.log, set()).values(), key=lambda r: (r["family"], r["recipe"])),
    }
    if given.plain:
        write("plain_networks", "Plain networks", lines, figures)
    else:
        write("architectures", "Families of transformers", lines, figures)


def _names(plain: bool) -> list[str]:
    if plain:
        from plain_networks import NETWORKS

        return list(NETWORKS)
    from tiny_transformers import families

    return families()


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _record(results: Iterator[list[dict[str, Any]]], log: Any) -> None:
    for rows in results:
        for row in rows:
            log.write(json.dumps(row) + "\n")
            print(
                f"{row['family']} {row['recipe']} {row['end']} {row['seconds']} {row['text'][:160]}"
            )
        log.flush()


def read(log: Path, again: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last result of each family and recipe, but those that ended in one of `again`."""
    rows = {}
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["family"], row["recipe"]] = row
    return {key: row for key, row in rows.items() if row["end"] not in again}


def summary(
    rows: dict[tuple[str, str], dict[str, Any]], chosen: list[str], recipes: list[str]
) -> list[str]:
    """Return the counts as lines of a page."""
    from results_files import table

    built = [f for f in chosen if (f, "build") not in rows]
    walked = {f for f, _ in rows if f in chosen}
    lines = []
    for recipe in recipes:
        ends = Counter(rows[f, recipe]["end"] for f in built if (f, recipe) in rows)
        total = sum(ends.values())
        share = f"{100 * ends['ok'] / max(total, 1):.1f} %"
        lines.append([recipe, str(total), *(str(ends[e]) for e in ENDS), share])
    unbuilt = len(chosen) - len(built)
    page = [
        f"{len(walked)} of {len(chosen)} model types walked; {unbuilt} of them cannot be built "
        "here, for the reasons at the end.",
        "",
        *table(["recipe", "families", *ENDS.values(), "share"], lines),
    ]
    for end in list(ENDS)[1:]:
        reasons: dict[str, list[str]] = defaultdict(list)
        for (family, recipe), row in rows.items():
            if row["end"] == end and family in chosen and recipe in recipes:
                reasons[f"{recipe}: {row['text']}"].append(family)
        page += ["", f"## {ENDS[end]}", ""]
        page += [f"- {text} ({', '.join(names)})" for text, names in sorted(reasons.items())]
    page += ["", "## cannot be built", ""]
    page += [f"- {f}: {rows[f, 'build']['text']}" for f in chosen if (f, "build") in rows]
    return page


def walk(family: str, recipes: list[str], done: frozenset[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each recipe of a family, or one that says why it cannot be built."""
    import torch
    import transformers
    from tiny_transformers import make

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zoopress-architecture-") as name:
        folder = Path(name)
        try:
            with _limit(SECONDS):
                tiny = make(family)
                original = tiny.module
                original.save_pretrained(folder / "checkpoint")
                _save_inputs(folder, tiny.inputs)
        except Exception as error:  # whatever a family's code says
            return [_row(family, "build", "unbuilt", f"{type(error).__name__}: {error}", start)]
        rows = []
        for recipe in recipes:
            if (family, recipe) not in done:
                start = time.perf_counter()
                card = {
                    "source": "path:checkpoint",
                    "model_class": type(original).__name__,
                    "data": {"file": "inputs.npz"},
                }
                end, text = attempt(folder, card, recipe, RECIPES[recipe])
                rows.append(_row(family, recipe, end, text, start))
        return rows


def walk_plain(
    name: str, recipes: list[str], done: frozenset[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return a row for each recipe of a plain network."""
    import torch
    from plain_networks import NETWORKS

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    network = NETWORKS[name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="zoopress-architecture-") as place:
        folder = Path(place)
        torch.manual_seed(0)
        torch.save(network.module().eval().state_dict(), folder / "weights.pt")
        file = folder / f"network_{name}.py"
        file.write_text(Path(str(network.file.__file__)).read_text(encoding="utf-8"))
        card = {
            "source": "path:weights.pt",
            "factory": f"{file.name}:{network.build}",
            "data": {"inputs": f"{file.name}:{network.inputs}"},
        }
        for recipe in recipes:
            if (name, recipe) not in done:
                start = time.perf_counter()
                end, text = attempt(folder, card, recipe, PLAIN_RECIPES[recipe], network.module)
                rows.append(_row(name, recipe, end, text, start))
    return rows


def _row(family: str, recipe: str, end: str, text: str, start: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - start, 1)
    row = {"family": family, "recipe": recipe, "end": end, "text": " ".join(text.split())[:500]}
    return {**row, "seconds": seconds}


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTime(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _only_fidelity() -> Iterator[None]:
    """Leave out what takes longer than a tiny model's compression: measures, and latency."""
    from zoopress.pipeline import workbench

    with (
        mock.patch.object(workbench, "evaluate", return_value={}),
        mock.patch.object(
            workbench, "measure_latency", partial(workbench.measure_latency, seconds=0.001)
        ),
    ):
        yield


def _save_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    import numpy

    arrays = {name: value.numpy() for name, value in inputs.items()}
    numpy.savez(folder / "inputs.npz", **arrays)


def attempt(
    folder: Path,
    card: dict[str, Any],
    name: str,
    stages: list[dict[str, Any]],
    factory: Any = None,
) -> tuple[str, str]:
    """Run a recipe on the card's model in a folder; return how it ended and what was said."""
    import yaml

    from zoopress.cards import load_card
    from zoopress.errors import ZoopressError
    from zoopress.loading import load
    from zoopress.pipeline.compress import compress
    from zoopress.plugins import load_plugins
    from zoopress.recipes import load_recipe
    from zoopress.store import Store

    samples = {"calibration_samples": 4, "evaluation_samples": 8, "batch_size": 4}
    card = {"name": "tiny", **card, "data": {**card["data"], **samples}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "stages": stages}))
    plugins = load_plugins()
    try:
        with _limit(SECONDS), _only_fidelity():
            result = compress(
                load_card(str(folder / "card.yaml"), plugins),
                load_recipe(str(folder / f"{name}.yaml"), plugins),
                folder / f"out-{name}",
                Store(folder / "store"),
                plugins,
            )
            load(result.artifact, factory=factory)
        notes = json.loads((folder / f"out-{name}" / "report.json").read_text())
        return "ok", _said(notes)
    except ZoopressError as error:
        return "refused", str(error)
    except OutOfTime as error:
        return "timeout", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(place.filename).name}:{place.lineno}"
        return "crash", f"{type(error).__name__}: {str(error)[:200]} ({at})"


def _said(report: dict[str, Any]) -> str:
    notes = report["stages"][0].get("notes") or {}
    if "neurons_before" not in notes:
        return ""
    before, after = report["original_parameters"], report["stages"][-1]["parameters"]
    text = f"{notes['neurons_before']} neurons; {100 * (1 - after / before):.0f} % of parameters"
    text += f"; native {report['loads_as'].get('native')}"
    if notes.get("skipped"):
        text += f"; skipped {len(notes['skipped'])}: {next(iter(notes['skipped'].values()))}"
    if notes.get("fixed"):
        text += f"; fixed {notes['fixed']}"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
