"""Real runs on disks that are full, read-only or damaged: nothing lost, nothing wrong trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_places import SharedPlace, s3_endpoint, shared_place
from small_zoo import read_zoo, write_zoo
from zoopress.errors import StoreError
from zoopress.pipeline.compress import compress
from zoopress.store import Store, digest
from zoopress.store.upkeep import list_stored

__all__ = ["s3_endpoint", "shared_place"]
ZOOPRESS = f"{sys.executable} -m zoopress"
RUN = f"{ZOOPRESS} run card.yaml recipe.yaml --store store --json --out"


def can_mount() -> bool:
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="no right to mount file systems in a namespace of one's own"
)


def in_namespace(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script whose mounts nobody else sees, and which end with it."""
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=folder, capture_output=True, text=True
    )


@needs_mounts
def test_after_space_was_freed_the_same_command_finishes(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    (tmp_path / "store").mkdir()
    done = in_namespace(
        tmp_path,
        f"""
        mount -t tmpfs -o size=2m tmpfs store
        head -c 2000k /dev/zero > store/ballast
        {RUN} out > first.json 2> first.txt; echo $? > first.status
        find store/staging store/quarantine -mindepth 1 > leftovers.txt 2> /dev/null
        ls store/entries/* > finished.txt 2> /dev/null
        rm store/ballast
        {RUN} out > second.json 2> second.txt; echo $? > second.status
        {ZOOPRESS} store check --store store > check.txt
        """,
    )
    text = (tmp_path / "first.txt").read_text()
    assert (tmp_path / "first.status").read_text() == "1\n", done.stderr + text
    assert "No space left on device" in text
    assert "Free space on that disk" in text
    assert "zoopress store gc" in text
    assert "Traceback" not in text
    assert (tmp_path / "leftovers.txt").read_text() == ""
    assert len((tmp_path / "finished.txt").read_text().split()) < 15
    assert (tmp_path / "second.status").read_text() == "0\n", (tmp_path / "second.txt").read_text()
    assert json.loads((tmp_path / "second.json").read_text())["compression_ratio"] > 1
    assert (tmp_path / "check.txt").read_text().startswith("5 results checked")


@needs_mounts
def test_from_a_read_only_store_an_unchanged_job_works_and_another_says_what_to_do(
    tmp_path: Path,
) -> None:
    write_zoo(tmp_path)
    compress(*read_zoo(tmp_path), tmp_path / "out", Store(tmp_path / "store"))
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("bits: 4", "bits: 5")
    )
    in_namespace(
        tmp_path,
        f"""
        mount --bind store store
        mount -o remount,ro,bind store
        touch store/x 2> readonly.txt
        {RUN} again > same.json 2> same.txt; echo $? > same.status
        {RUN.replace("recipe.yaml", "other.yaml")} other > other.json 2> other.txt
        echo $? > other.status
        {ZOOPRESS} store list --store store > list.txt; echo $? > list.status
        {ZOOPRESS} store gc --store store --max-size 0 --grace 0s --dry-run > dry.txt
        {ZOOPRESS} store gc --store store --max-size 0 --grace 0s > gc.txt 2>&1
        echo $? > gc.status
        """,
    )
    assert "Read-only" in (tmp_path / "readonly.txt").read_text()
    text = (tmp_path / "same.txt").read_text()
    assert (tmp_path / "same.status").read_text() == "0\n", text
    assert "Traceback" not in text
    assert (tmp_path / "again" / "artifact" / "zoopress.json").is_file()
    text = (tmp_path / "other.txt").read_text()
    assert (tmp_path / "other.status").read_text() == "1\n", text
    assert "Cannot lock the store at" in text
    assert "Read-only file system" in text
    assert "--store" in text
    assert "Traceback" not in text
    assert "5 results" in (tmp_path / "list.txt").read_text()
    assert "Would remove 5 results" in (tmp_path / "dry.txt").read_text()
    text = (tmp_path / "gc.txt").read_text()
    assert (tmp_path / "gc.status").read_text() == "1\n", text
    assert "Cannot collect garbage in the store at" in text
    assert "Traceback" not in text
    assert len(list(list_stored(Store(tmp_path / "store")))) == 5


@needs_mounts
def test_a_local_disk_that_is_too_full_for_a_shared_result_is_named(
    tmp_path: Path, shared_place: Callable[[str], SharedPlace]
) -> None:
    place = shared_place("file")
    with place.machine("first").claim(digest("big")) as claim:
        (claim.staging / "file").write_bytes(os.urandom(300_000))
        claim.commit({})
    script = (
        "import sys; from zoopress.store import Store, digest; from zoopress.errors import *\n"
        "try: Store(sys.argv[1]).find(digest('big'))\n"
        "except StoreError as error: print(error)"
    )
    (tmp_path / "cache").mkdir()
    done = in_namespace(
        tmp_path,
        f"""
        mount -t tmpfs -o size=100k tmpfs cache
        ZOOPRESS_STORE_CACHE=cache {sys.executable} -c "{script}" {place.url}
        find cache -type f -size +0 -not -name shared-store
        """,
    )
    assert "Cannot write to the store at" in done.stdout, done.stderr
    assert "Free space on that disk" in done.stdout
    assert place.url in done.stdout
    assert done.stdout.count("\n") == 1, "a half-written result was left"
    assert place.machine("second").find(digest("big")) is not None


@needs_mounts
def test_from_a_read_only_shared_store_everything_is_used_and_new_work_stays_here(
    tmp_path: Path, shared_place: Callable[[str], SharedPlace]
) -> None:
    place = shared_place("file")
    for name in "ab":
        with place.machine("first").claim(digest(name)) as claim:
            claim.commit({"by": "first"})
    script = (
        "import sys; from zoopress.store import Store, digest\n"
        "store = Store(sys.argv[1])\n"
        "print([store.find(digest(name)).record for name in 'ab'])\n"
        "with store.claim(digest('c')) as claim: claim.commit({'by': 'second'})\n"
        "print(store.find(digest('c')).record)"
    )
    root = place.url.removeprefix("file://")
    done = in_namespace(
        tmp_path,
        f"""
        mount --bind {root} {root}
        mount -o remount,ro,bind {root}
        ZOOPRESS_STORE_CACHE=cache {sys.executable} -c "{script}" {place.url}
        """,
    )
    assert done.stdout == "[{'by': 'first'}, {'by': 'first'}]\n{'by': 'second'}\n", done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_full_when_a_run_registers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match=r"Cannot register a run in .*Free space"):  # noqa: SIM117
        with store.using([digest("a")]):
            pytest.fail("not registered")
    assert not any((tmp_path / "users").iterdir())


def test_a_byte_flipped_here_is_healed_from_the_shared_store_and_the_reverse(
    tmp_path: Path, shared_place: Callable[[str], SharedPlace]
) -> None:
    place = shared_place("file")
    write_zoo(tmp_path)
    card, recipe = read_zoo(tmp_path)

    def run(machine: str) -> tuple[int, str]:
        result = compress(card, recipe, tmp_path / f"out-{machine}", place.machine(machine))
        return len(result.computed), result.report.artifact_sha256

    computed, expected = run("first")
    assert computed == 4
    last = place.machine("first").local.path(
        json.loads((tmp_path / "out-first" / "report.json").read_text())["store_keys"][3]
    )
    victim = max((last / "artifact").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert run("first") == (0, expected)
    assert len(list((place.machine("first").root / "quarantine").iterdir())) == 1

    root = Path(place.url.removeprefix("file://"))
    for blob in root.glob("blobs/*/*"):
        blob.write_bytes(bytes(byte ^ 1 for byte in blob.read_bytes()[:1]) + blob.read_bytes()[1:])
    computed, digest_of_second = run("second")
    assert computed == 4
    assert digest_of_second == expected
    assert run("third") == (0, expected)


@pytest.mark.slow
def test_two_runs_and_one_repro_at_once_compute_each_stage_once(tmp_path: Path) -> None:
    write_zoo(tmp_path, width=400)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ZOOPRESS_STORE": str(tmp_path / "store"),
        "DVC_NO_ANALYTICS": "1",
    }
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  one:\n    cmd: zoopress run card.yaml recipe.yaml --out repro -q\n"
        "    deps: [card.yaml, recipe.yaml]\n    outs: [repro/artifact]\n"
    )
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    commands = [
        [sys.executable, "-m", "zoopress", "run", "card.yaml", "recipe.yaml", "-q", "-o", "one"],
        [sys.executable, "-m", "zoopress", "run", "card.yaml", "recipe.yaml", "-q", "-o", "two"],
        ["dvc", "repro", "-q"],
    ]
    runs = [subprocess.Popen(words, cwd=tmp_path, env=environment) for words in commands]
    assert [run.wait() for run in runs] == [0, 0, 0]
    stored = list(list_stored(Store(tmp_path / "store")))
    assert len(stored) == 5
    manifests = {
        (tmp_path / name / "artifact" / "zoopress.json").read_bytes()
        for name in ("one", "two", "repro")
    }
    assert len(manifests) == 1


def test_threads_of_one_process_share_a_key_as_processes_do(tmp_path: Path) -> None:
    computed: list[int] = []

    def work() -> None:
        with Store(tmp_path).claim(digest("a")) as claim:
            if claim.entry is None:
                computed.append(1)
                claim.commit({})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert computed == [1]
