"""Collection: the old and the too much go; what is referred to, in use or young never does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from small_zoo import read_zoo, write_zoo
from zoopress.commands.cli import app
from zoopress.errors import InputError, StoreError
from zoopress.pipeline.compress import Result, compress
from zoopress.store import Store, digest
from zoopress.store.collect import Policy, Stored, choose, total_bytes
from zoopress.store.reachable import reachable_keys
from zoopress.store.upkeep import collect, list_stored
from zoopress.store.users import removal_lock, used_keys

ALL = Policy(max_size_bytes=0, grace_s=0)
"""Removes whatever may be removed."""
DAY = 86400.0


def fill(store: Store, key: str, size: int = 100, unused_s: float = 0.0) -> Path:
    with store.claim(key) as claim:
        (claim.staging / "artifact").mkdir()
        (claim.staging / "artifact" / "model").write_bytes(b"x" * size)
        path = claim.commit({"technique": "magnitude_pruning"}).path
    set_age(path / "record.json", unused_s)
    return path


def set_age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def keys_in(store: Store) -> set[str]:
    return {one.key for one in list_stored(store)}


# What to remove.

STORED = st.lists(
    st.builds(
        Stored,
        key=st.text("abcdef", min_size=1, max_size=4),
        seconds_unused=st.floats(0, 100),
        contents=st.dictionaries(st.sampled_from("uvwxyz"), st.just(0)),
    ),
    unique_by=lambda one: one.key,
    max_size=12,
).map(
    lambda stored: [
        Stored(one.key, one.seconds_unused, {name: 10 * ord(name) % 97 for name in one.contents})
        for one in stored
    ]
)
POLICIES = st.builds(
    Policy,
    max_age_s=st.none() | st.floats(0, 100),
    max_size_bytes=st.none() | st.integers(0, 300),
    keep=st.frozensets(st.text("abcdef", min_size=1, max_size=2), max_size=4),
    grace_s=st.floats(0, 50),
)


@given(stored=STORED, policy=POLICIES)
def test_the_old_go_and_then_the_longest_unused_until_the_rest_fits(
    stored: list[Stored], policy: Policy
) -> None:
    chosen = choose(stored, policy)
    gone = {one.key for one in chosen}
    left = [one for one in stored if one.key not in gone]
    free = [o for o in stored if o.key not in policy.keep and o.seconds_unused >= policy.grace_s]
    assert gone <= {one.key for one in free}
    too_old = {
        one.key
        for one in free
        if policy.max_age_s is not None and one.seconds_unused > policy.max_age_s
    }
    assert gone >= too_old
    if policy.max_size_bytes is None:
        assert gone == too_old
        return
    fits = total_bytes(left) <= policy.max_size_bytes
    assert fits or gone == {one.key for one in free}
    for_size = [one for one in chosen if one.key not in too_old]
    if for_size:  # the last of them was still needed
        assert total_bytes([*left, for_size[-1]]) > policy.max_size_bytes
        youngest = min(one.seconds_unused for one in for_size)
        assert all(o.seconds_unused <= youngest for o in free if o.key not in gone)


@settings(max_examples=15)
@given(data=st.data())
def test_what_is_used_kept_or_young_stays_and_the_rest_makes_room(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    keys = [digest(i) for i in range(6)]
    ages = {key: data.draw(st.sampled_from([-1e6, 0.0, 2 * DAY, 50 * DAY])) for key in keys}
    sizes = {key: data.draw(st.sampled_from([10, 5000])) for key in keys}
    for key in keys:
        fill(store, key, sizes[key], ages[key])
    used, keep = (data.draw(st.sets(st.sampled_from(keys), max_size=2)) for _ in range(2))
    limit = data.draw(st.sampled_from([0, 6000, 12000]))
    policy = Policy(30 * DAY, limit, frozenset(keep), grace_s=DAY)
    with store.using(used):
        planned = collect(store, policy, dry_run=True)
        assert keys_in(store) == set(keys)
        done = collect(store, policy)
    left = keys_in(store)
    assert planned == done
    assert left == set(keys) - set(done.removed)
    young = {key for key in keys if ages[key] < DAY}
    assert left >= used | keep | young
    free = set(keys) - used - keep - young
    assert not {key for key in free if ages[key] > 30 * DAY} & left
    size = sum(one.bytes for one in list_stored(store))
    assert (done.left, done.left_bytes) == (len(left), size)
    assert size <= limit or not left & free
    assert (done.in_use, done.reachable) == (len(used), len(keep))
    assert all(store.find(key) is not None for key in left)


def test_a_use_that_lies_in_the_future_is_one_just_now(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, digest("jumped"), unused_s=-10 * DAY)
    assert [one.seconds_unused for one in list_stored(store)] == [0.0]
    assert collect(store, Policy(max_age_s=0.0)).removed == []
    assert collect(store, Policy(max_size_bytes=0)).removed == []


def test_to_find_a_result_is_to_use_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = fill(store, digest("a"), unused_s=40 * DAY)
    assert store.find(digest("a")) is not None
    assert collect(store, Policy(max_age_s=30 * DAY)).removed == []
    set_age(path / "record.json", 40 * DAY)
    assert store.local.verify(digest("a")) is not None  # a check is no use
    assert collect(store, Policy(max_age_s=30 * DAY)).removed == [digest("a")]


def test_an_empty_store_has_nothing_to_collect(tmp_path: Path) -> None:
    assert collect(Store(tmp_path / "nowhere"), ALL).removed == []
    assert not (tmp_path / "nowhere").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, digest("a"), unused_s=DAY)
    (tmp_path / "trash").write_text("a file where a folder should be")
    (tmp_path / "trash").chmod(0o400)
    (tmp_path / "locks" / "x.lock").touch()
    fill(store, digest("b"), unused_s=DAY)
    with pytest.raises(StoreError, match=r"Cannot collect garbage in the store at .*"):
        collect(store, ALL)
    assert len(keys_in(store)) == 2


# Never what a run uses.

RUN = """
import sys, time
from pathlib import Path
from zoopress.store import Store

store, keys, ready = Store(Path(sys.argv[1])), sys.argv[2].split(","), Path(sys.argv[3])
with store.using(keys):
    ready.touch()
    sys.stdin.readline()
    assert all(store.find(key) is not None for key in keys)
    print("all there", flush=True)
    sys.stdin.readline()
"""


def test_collection_leaves_a_living_runs_results_and_takes_a_killed_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    keys = [digest(i) for i in range(5)]
    for key in keys:
        fill(store, key, unused_s=99 * DAY)
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", RUN, str(store.root), ",".join(keys[:3]), str(ready)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        while not ready.exists():
            assert run.poll() is None
            time.sleep(0.01)
        done = collect(store, ALL)
        assert set(done.removed) == set(keys[3:])
        assert done.in_use == 3
        run.stdin.write("look\n")
        run.stdin.flush()
        assert run.stdout.readline() == "all there\n"
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert set(collect(store, ALL).removed) == set(keys[:3])
    assert not any((store.root / "users").iterdir())


def test_a_run_that_registers_while_results_are_removed_waits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, digest("a"))
    registered = threading.Event()

    def run() -> None:
        with store.using([digest("a")]):
            registered.set()

    with removal_lock(store.local):
        thread = threading.Thread(target=run)
        thread.start()
        assert not registered.wait(0.3)
    thread.join(60)
    assert registered.is_set()
    assert used_keys(store.local) == set()


BUSY = """
import sys
from pathlib import Path
from zoopress.store import Store

store, key, rounds = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
computed = 0
for _ in range(rounds):
    with store.using([key]):
        with store.claim(key) as claim:
            if claim.entry is None:
                (claim.staging / "file").write_text("x")
                claim.commit({})
                computed += 1
        for _ in range(5):
            entry = store.find(key)
            assert entry is not None and (entry.path / "file").read_text() == "x"
print(computed)
"""


def test_results_never_vanish_under_runs_while_collection_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    words = [sys.executable, "-c", BUSY, str(tmp_path), digest("a"), "60"]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    removed = 0
    while any(run.poll() is None for run in runs):
        removed += len(collect(store, ALL).removed)
    computed = sum(int(run.communicate()[0]) for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert computed == removed + len(keys_in(store))
    assert removed > 0


COUNT = """
import sys
from pathlib import Path
from zoopress.store import Store

store, counter = Store(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with store.local.locked("counter"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_removing_lock_files_never_lets_two_hold_one_lock(tmp_path: Path) -> None:
    store, counter = Store(tmp_path / "store"), tmp_path / "counter"
    counter.write_text("0")
    store.root.mkdir()
    words = [sys.executable, "-c", COUNT, str(store.root), str(counter), "100"]
    runs = [subprocess.Popen(words) for _ in range(3)]
    while any(run.poll() is None for run in runs):
        collect(store, ALL)
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert counter.read_text() == "300"
    collect(store, ALL)
    assert not any((store.root / "locks").iterdir())


def test_a_result_whose_key_is_claimed_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, digest("a"), unused_s=DAY)
    with store.claim(digest("a")):
        assert collect(store, ALL).removed == []
    assert collect(store, ALL).removed == [digest("a")]


def test_what_the_dead_left_is_cleared_and_what_the_living_write_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    damaged = fill(store, digest("damaged"))
    (damaged / "artifact" / "model").unlink()
    assert store.find(digest("damaged")) is None
    dead = store.local.make_staging(digest("dead"))
    (dead / "half").write_text("x")
    old, young = (store.local.checkpoint(digest(name)) for name in ("old", "young"))
    (young / "step").write_text("7")
    set_age(old, 8 * DAY)
    with store.claim(digest("living")) as claim:
        (claim.staging / "half").write_text("x")
        set_age(claim.checkpoint, 8 * DAY)
        assert collect(store, Policy(), dry_run=True).leftovers == 3
        assert dead.exists()
        assert collect(store, Policy()).leftovers == 3
        assert (claim.staging / "half").exists()
        assert claim.checkpoint.exists()
        claim.commit({})
    assert not any((tmp_path / "quarantine").iterdir())
    assert not dead.exists()
    assert not old.exists()
    assert (young / "step").read_text() == "7"
    assert store.find(digest("living")) is not None
    collect(store, Policy(max_age_s=0.0))
    assert not young.exists()


# Reachability.


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def commit_report(folder: Path, text: str, *keys: str, place: str = "models/a/b") -> None:
    path = folder / place / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"store_keys": keys, "text": text}))
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", text)


def test_what_any_commit_of_any_branch_or_tag_names_is_reachable(tmp_path: Path) -> None:
    names = ("past", "branch", "tag", "gone", "staged", "loose", "merge", "conflict")
    keys = {name: digest(name) for name in names}
    git(tmp_path, "init", "-q", "-b", "main")
    assert reachable_keys(tmp_path) == frozenset()
    commit_report(tmp_path, "past", keys["past"])
    commit_report(tmp_path, "gone", keys["gone"], place="models/deleted/b")
    git(tmp_path, "rm", "-q", "models/deleted/b/report.json")
    git(tmp_path, "commit", "-qm", "deleted")
    git(tmp_path, "checkout", "-qb", "other")
    commit_report(tmp_path, "branch", keys["branch"])
    git(tmp_path, "checkout", "-q", "--detach")
    commit_report(tmp_path, "tag", keys["tag"])
    git(tmp_path, "tag", "v1")
    git(tmp_path, "checkout", "-q", "main")
    git(tmp_path, "merge", "-q", "--no-ff", "--no-commit", "other")
    commit_report(tmp_path, "merge", keys["merge"])
    commit_report(tmp_path, "now")
    (tmp_path / "report.json").write_text(keys["staged"])
    git(tmp_path, "add", "-A")
    (tmp_path / "report.json").write_text(f"<<<<<<< HEAD\n{keys['conflict']}\n=======\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(json.dumps([keys["loose"]]))
    (tmp_path / "notes.json").write_text(digest("no report"))
    assert reachable_keys(tmp_path) == set(keys.values())
    assert reachable_keys(tmp_path / "models") == set(keys.values())
    git(tmp_path, "worktree", "add", "-q", str(tmp_path / ".elsewhere"), "v1")
    assert reachable_keys(tmp_path / ".elsewhere") >= {keys["tag"], keys["past"]}


def test_if_git_fails_nothing_is_taken_for_garbage(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(InputError, match=r"git .* failed in .*nothing was removed"):
        reachable_keys(tmp_path)
    with pytest.raises(InputError, match=r"nowhere is no folder"):
        reachable_keys(tmp_path / "nowhere")


def test_a_folder_without_git_keeps_what_its_reports_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "report.json").write_text(json.dumps({"store_keys": [digest("x")]}))
    assert reachable_keys(tmp_path) == {digest("x")}


# The commands.


@pytest.fixture
def run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A finished cell in a repository with a DVC lock; its store is the default one."""
    write_zoo(tmp_path)
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    return compress(*read_zoo(tmp_path), tmp_path / "models" / "perceptron" / "recipe", Store())


def invoke(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["store", *words], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def test_a_report_names_what_its_results_were_stored_under(run_once: Result) -> None:
    text = json.loads((run_once.folder / "report.json").read_text())
    assert set(text["store_keys"]) == keys_in(Store())
    assert len(text["store_keys"]) == 5


def test_what_a_repository_refers_to_survives_collection(
    run_once: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Store(), digest("not referred to"), unused_s=DAY)
    limits = ("gc", "--max-size", "0", "--grace", "0s")
    planned = json.loads(invoke(*limits, "--dry-run", "--json"))
    assert planned["removed"] == [digest("not referred to")]
    assert planned["over_max_size"] is True
    assert len(keys_in(Store())) == 6
    text = invoke(*limits)
    assert "Removed 1 results" in text
    assert "5 results" in text
    assert "5 of them referred to" in text
    # From elsewhere it must be named.
    (tmp_path / "elsewhere").mkdir()
    git(tmp_path / "elsewhere", "init", "-q")
    monkeypatch.chdir(tmp_path / "elsewhere")
    invoke(*limits, "--keep-reachable-from", str(tmp_path))
    assert len(keys_in(Store())) == 5
    invoke(*limits, "--keep-reachable-from", str(tmp_path / "elsewhere"))
    assert keys_in(Store()) == set()


def test_results_are_listed_with_what_made_them(run_once: Result) -> None:
    found = json.loads(invoke("list", "--json"))
    titles = [one["result"] for one in found]
    assert sorted(titles) == sorted(
        [*(stage.technique for stage in run_once.report.stages), "report of perceptron × recipe"]
    )
    assert all(one["bytes"] > 0 and one["seconds_unused"] >= 0 for one in found)
    text = invoke("list")
    assert "neuron_pruning" in text
    assert "5 results" in text
    size = json.loads(invoke("size", "--json"))
    assert size["bytes"] == sum(one["bytes"] for one in found)
    assert "5 results" in invoke("size")


def test_check_names_and_sets_aside_what_is_damaged_and_fails(run_once: Result) -> None:
    assert "0 damaged" in invoke("check")
    artifact = Store().local.path(run_once.report.store_keys[1]) / "artifact"
    victim = max(artifact.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    found = json.loads(invoke("check", "--json", status=1))
    assert found["checked"] == 5
    assert found["damaged"] == [run_once.report.store_keys[1]]
    assert json.loads(invoke("check", "--json"))["checked"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gc", "--max-age", "30"], "30d"),
        (["gc", "--max-size", "much"], "20GB"),
        (["gc", "--keep-reachable-from", "nowhere"], "nothing was removed"),
        (["list", "--store", "s3://id:secret@bucket/zoo"], "holds credentials"),
    ],
)
def test_a_mistake_on_the_command_line_says_what_would_be_right(
    words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        invoke(*words)


def test_nothing_is_listed_to_find_or_claim_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    fill(store, digest("a"))
    scandir, listed = os.scandir, []

    def look(path: Any = ".") -> Any:
        listed.append(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    monkeypatch.setattr(os, "listdir", lambda path=".": pytest.fail(f"{path} was listed"))
    with store.using([digest("a"), digest("b")]):
        assert store.find(digest("a")) is not None
        assert store.find(digest("b")) is None
        with store.claim(digest("b")) as claim:
            claim.commit({})
    # Only what belongs to the key alone.
    assert listed
    assert all(digest("b") in path for path in listed)
