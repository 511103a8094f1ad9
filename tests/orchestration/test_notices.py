"""Notices of failure, and what the store keeps: as a repository's params.yaml says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from small_zoo import write_zoo
from zoopress.errors import InputError
from zoopress.orchestration.notices import read_on_failure, tell_of_failure
from zoopress.orchestration.request import ZooRequest, run_zoo
from zoopress.orchestration.retention import RetentionSection, prune, read_retention
from zoopress.plugins import Plugins
from zoopress.store import Store

PARAMS = """
matrix: {cards: [card.yaml], recipes: [good, harsh]}
recipes:
  good: {stages: [{technique: weight_quantization, bits: 8}]}
  harsh:
    stages: [{technique: magnitude_pruning, sparsity: 0.9}]
    targets: {min_cosine: 0.99999}
notify: {on_failure: 'cat > told.json; echo "$ZOOPRESS_SUMMARY" > summary'}
"""


@pytest.mark.usefixtures("warm_workers")
def test_a_run_with_a_failed_cell_tells_somebody_and_one_without_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: Plugins
) -> None:
    write_zoo(tmp_path, 32)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    only = ZooRequest((), ("params.yaml#recipes.good",), "params.yaml", quiet=True)
    run_zoo(only, plugins)
    assert not (tmp_path / "told.json").exists()
    board = run_zoo(ZooRequest(matrix="params.yaml", quiet=True), plugins)
    assert json.loads((tmp_path / "told.json").read_text()) == json.loads(
        json.dumps(board.as_dict())
    )
    assert "1 done, 1 failed" in (tmp_path / "summary").read_text()
    (failed,) = board.unfinished
    assert failed.log is not None
    assert "fidelity_kept" in Path(failed.log).read_text()


def test_a_command_that_fails_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    tell_of_failure("echo no route >&2; exit 7", "s", {}, said.append)
    assert len(said) == 1
    assert "exit status 7: no route" in said[0]


def test_sections_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("notify: {on_falure: x}\nretention: {max_age: forever}\n")
    with pytest.raises(InputError, match="Did you mean 'on_failure'"):
        read_on_failure(str(path), None)
    with pytest.raises(InputError, match="'forever' is no duration"):
        read_retention(path)
    assert read_on_failure(str(path), "") is None


def test_what_a_repository_refers_to_outlives_every_limit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    store = Store(tmp_path / "store")
    for key in ("a" * 64, "b" * 64):
        with store.claim(key) as claim:
            (claim.staging / "file").write_text(key)
            claim.commit({})
    (tmp_path / "report.json").write_text(json.dumps({"store_keys": ["a" * 64]}))
    for record in (tmp_path / "store" / "entries").glob("*/*/record.json"):
        os.utime(record, (1, 1))
    done = prune(str(tmp_path / "store"), RetentionSection(max_age="1d"), tmp_path)
    assert done.removed == ["b" * 64]
