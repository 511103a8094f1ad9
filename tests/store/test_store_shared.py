"""A store that machines share: what one finishes the others find, and damage is never trusted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, strategies as st

from shared_places import (
    AT_ONCE,
    ONCE,
    S3_ENVIRONMENT,
    STORAGES,
    SharedPlace,
    free_port,
    needs_s3,
    s3_endpoint,
    s3_server,
    shared_place,
)
from small_zoo import read_zoo, write_zoo
from zoopress.errors import InputError, StoreError
from zoopress.pipeline.compress import compress
from zoopress.store import Entry, Store, digest
from zoopress.store.collect import Policy
from zoopress.store.lease import leased
from zoopress.store.remote_files import RemoteFiles
from zoopress.store.shared import SharedTier, blob_path, entry_path, lease_path
from zoopress.store.upkeep import check, collect, list_stored

__all__ = ["s3_endpoint", "shared_place"]
KEY = digest("a key")
FILES = {"artifact/model.safetensors": b"weights" * 50, "artifact/config.json": b"{}", "empty": b""}


@pytest.fixture(params=STORAGES)
def place(
    request: pytest.FixtureRequest, shared_place: Callable[[str], SharedPlace]
) -> SharedPlace:
    return shared_place(request.param)


@pytest.fixture
def memory(shared_place: Callable[[str], SharedPlace]) -> SharedPlace:
    return shared_place("memory")


@pytest.fixture
def folder(shared_place: Callable[[str], SharedPlace]) -> SharedPlace:
    return shared_place("file")


def fill(store: Store, key: str = KEY, files: dict[str, bytes] = FILES, **record: Any) -> Entry:
    with store.claim(key) as claim:
        assert claim.entry is None
        for name, content in files.items():
            (claim.staging / name).parent.mkdir(exist_ok=True)
            (claim.staging / name).write_bytes(content)
        return claim.commit({"figure": 0.5, **record})


def contents(entry: Entry | None) -> dict[str, bytes]:
    assert entry is not None
    paths = [path for path in entry.path.rglob("*") if path.is_file()]
    return {path.relative_to(entry.path).as_posix(): path.read_bytes() for path in paths}


def test_what_one_machine_commits_another_finds(place: SharedPlace) -> None:
    made = fill(place.machine("first"))
    second = place.machine("second")
    assert second.find(digest("another key")) is None
    found = second.find(KEY)
    assert contents(found) == contents(made)
    assert contents(found).keys() == FILES.keys() | {"record.json"}
    assert found is not None
    assert found.record == {"figure": 0.5}
    assert second.root in found.path.parents
    assert place.names("leases") == place.names("incoming") == place.names("quarantine") == []


def test_equal_files_of_several_results_are_stored_once(memory: SharedPlace) -> None:
    store = memory.machine("first")
    fill(store, digest("a"), {"big": b"same" * 99, "other": b"1"})
    fill(store, digest("b"), {"big": b"same" * 99, "other": b"2"})
    assert len(memory.names("blobs")) == 3
    assert len(memory.names("entries")) == 2


def test_what_is_here_is_used_without_asking_the_shared_store(folder: SharedPlace) -> None:
    store = folder.machine("first")
    fill(store)
    Path(folder.url.removeprefix("file://")).rename(folder.folder / "away")
    again = folder.machine("first")
    entry = again.find(KEY)
    assert contents(entry).keys() == FILES.keys() | {"record.json"}


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("how", [flip, lambda content: content[:-1], lambda _: b"", None])
def test_a_damaged_blob_is_set_aside_and_healed_by_the_next_to_compute(
    how: Callable[[bytes], bytes] | None, place: SharedPlace, caplog: pytest.LogCaptureFixture
) -> None:
    fill(place.machine("first"))
    (path,) = (name for name in place.names() if place.read(name) == b"weights" * 50)
    system, root = place.raw
    if how is None:
        system.rm_file(f"{root}/{path}")
    else:
        place.write(path, how(place.read(path)))
    second = place.machine("second")
    assert second.find(KEY) is None
    assert entry_path(KEY) not in place.names()
    assert path not in place.names()
    assert "Damaged, and set aside" in caplog.text
    made = fill(second)
    assert contents(place.machine("third").find(KEY)) == contents(made)


@given(data=st.data())
def test_a_changed_bit_of_an_entry_is_never_trusted(data: st.DataObject) -> None:
    place = SharedPlace(f"memory://flipped-{time.monotonic_ns()}/store", Path("/nowhere"))
    tier = SharedTier(RemoteFiles(place.url, ONCE))
    content = {"record": {"figure": 0.5}, "files": {}}
    content["sha256"] = digest({"key": KEY, **content})
    text = bytearray(json.dumps(content).encode())
    where = data.draw(st.integers(0, len(text) - 1))
    text[where] ^= 1 << data.draw(st.integers(0, 7))
    place.write(entry_path(KEY), bytes(text))
    try:
        same = json.loads(text) == content  # a bit of the white space between JSON's tokens
    except ValueError:
        same = False
    assert (tier.read_entry(KEY) is not None) == same
    assert (entry_path(KEY) in place.names()) == same


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../b", "..", "a\\b", ""])
def test_an_entry_that_names_a_file_outside_is_set_aside(name: str, memory: SharedPlace) -> None:
    sha256 = digest("x")
    content: dict[str, Any] = {"record": {}, "files": {name: {"bytes": 1, "sha256": sha256}}}
    content["sha256"] = digest({"key": KEY, **content})
    memory.write(blob_path(sha256), b"x")
    memory.write(entry_path(KEY), json.dumps(content).encode())
    assert memory.machine("first").find(KEY) is None
    assert len(memory.names("quarantine")) == 1


def test_a_second_machine_waits_for_the_first_and_takes_its_result(place: SharedPlace) -> None:
    waited, told, results = threading.Event(), [], []

    def waiting() -> None:
        told.append(time.monotonic())
        waited.set()

    def second() -> None:
        with place.machine("second").claim(KEY, waiting) as claim:
            results.append(claim.entry)

    with place.machine("first").claim(KEY) as claim:
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(60)
        time.sleep(2 * AT_ONCE.dead_after_s)  # a living holder is not taken over
        assert not results
        (claim.staging / "file").write_bytes(b"1")
        claim.commit({"by": "first"})
    thread.join(60)
    assert results[0].record == {"by": "first"}
    assert len(told) == 1
    assert place.names("leases") == []


def test_the_lease_of_a_dead_machine_is_taken_over(
    place: SharedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(lease_path(KEY), b"someone 17\n")
    # Clocks that are far apart, or jump, change nothing.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    start = time.monotonic()
    told: list[str] = []
    with place.machine("first").claim(KEY, lambda: told.append("waiting")) as claim:
        assert time.monotonic() - start >= AT_ONCE.dead_after_s
        assert claim.entry is None
        (holder,) = place.names("leases")
        assert not place.read(f"leases/{holder}").startswith(b"someone")
    assert told == ["waiting"]
    assert place.names("leases") == []


def test_a_holder_that_was_taken_over_leaves_the_lease_to_the_other(memory: SharedPlace) -> None:
    files = RemoteFiles(memory.url, ONCE)
    with leased(files, "leases/x", lambda: None, AT_ONCE):
        memory.write("leases/x", b"other 1\n")
        time.sleep(4 * AT_ONCE.beat_s)
        assert memory.read("leases/x") == b"other 1\n"
    assert memory.read("leases/x") == b"other 1\n"


MACHINE = """
import sys, time
from pathlib import Path
from zoopress.store import Store
from zoopress.store.lease import Timing

url, name, signals = sys.argv[1], sys.argv[2], Path(sys.argv[3])
store = Store(url, timing=Timing(beat_s=0.05, dead_after_s=0.6, look_s=0.02))
print("ready", flush=True)
sys.stdin.readline()
with store.claim({key!r}) as claim:
    if claim.entry is not None:
        print("found", claim.entry.record["by"])
        sys.exit()
    (claim.staging / "file").write_text(name)
    (signals / name).touch()
    while name == "killed":
        time.sleep(1)
    time.sleep(0.3)
    claim.commit({{"by": name}})
    print("computed", name)
"""


def start_machine(place: SharedPlace, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ZOOPRESS_STORE_CACHE": str(place.folder / name)}
    process = subprocess.Popen(
        [sys.executable, "-c", MACHINE.format(key=KEY), place.url, name, str(place.folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_machines_that_start_at_once_one_computes_and_a_killed_one_blocks_nobody(
    folder: SharedPlace,
) -> None:
    with start_machine(folder, "killed") as killed:
        assert killed.stdin is not None
        killed.stdin.write("go\n")
        killed.stdin.flush()
        while not (folder.folder / "killed").exists() or not folder.names("leases"):
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    machines = [start_machine(folder, name) for name in ("a", "b", "c")]
    said = []
    for machine in machines:
        assert machine.stdin is not None
        machine.stdin.write("go\n")
        machine.stdin.flush()
    for machine in machines:
        said.append(machine.communicate(timeout=120)[0].strip())
        assert machine.returncode == 0
    computed = [text.split()[1] for text in said if text.startswith("computed")]
    assert len(computed) == 1, said
    assert sorted(said) == sorted([f"computed {computed[0]}", *[f"found {computed[0]}"] * 2])


@needs_s3
def test_while_the_shared_store_is_away_work_goes_on_and_is_uploaded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    for variable, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    place = SharedPlace("s3://outage/store", tmp_path)
    fsspec.filesystem("s3").clear_instance_cache()
    with s3_server(port):
        place.raw[0].mkdir("outage")
        fill(place.machine("first"), digest("before"))
    store = place.machine("first")
    assert store.find(digest("before")) is not None
    fill(store)
    assert "Cannot read the store at s3://outage/store" in caplog.text
    assert "Working without it" in caplog.text
    assert place.machine("first").find(KEY) is not None
    assert (store.root / "unsent" / KEY).exists()
    with s3_server(port):  # which has lost everything
        place.raw[0].mkdir("outage")
        assert place.machine("first").find(KEY) is not None
        assert not (store.root / "unsent" / KEY).exists()
        assert place.machine("second").find(KEY) is not None
    fsspec.filesystem("s3").clear_instance_cache()


def test_an_upload_that_fails_is_a_warning_and_is_repeated_when_the_result_is_found(
    folder: SharedPlace, caplog: pytest.LogCaptureFixture
) -> None:
    store = folder.machine("first")
    root = Path(folder.url.removeprefix("file://"))
    with store.claim(KEY) as claim:
        (root / "blobs").write_text("a file where the folder should be")
        (claim.staging / "file").write_bytes(b"1")
        claim.commit({"figure": 1})
    assert "The result is safe here" in caplog.text
    assert folder.names("entries") == []
    assert folder.machine("second").find(KEY) is None
    (root / "blobs").unlink()
    assert folder.machine("first").find(KEY) is not None
    found = folder.machine("second").find(KEY)
    assert found is not None
    assert found.record == {"figure": 1}


def test_a_run_that_dies_while_it_uploads_has_its_result_uploaded_by_the_next(
    memory: SharedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SharedTier, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            fill(memory.machine("first"))
    assert memory.names("entries") == []
    # Nothing is taken for garbage that only this machine has.
    policy = Policy(max_size_bytes=0, grace_s=0)
    assert collect(Store(memory.machine("first").root), policy).removed == []
    assert memory.machine("first").find(KEY) is not None
    assert memory.machine("second").find(KEY) is not None
    assert collect(Store(memory.machine("first").root), policy).removed == [KEY]


@needs_s3
def test_an_address_that_never_answered_is_an_error_that_says_what_to_do(
    shared_place: Callable[[str], SharedPlace], tmp_path: Path
) -> None:
    place = shared_place("s3")
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/zoo.*Check that the bucket"):
        place.machine("first", "s3://no-such-bucket/zoo").find(KEY)
    with pytest.raises(StoreError, match=r"Cannot open the store at nothing://x"):
        place.machine("first", "nothing://x").find(KEY)
    with pytest.raises(StoreError, match=r"Cannot (read|write to) the store at http://127"):
        place.machine("first", "http://127.0.0.1:9/zoo").find(KEY)


def test_a_storage_whose_package_is_missing_is_named(
    memory: SharedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StoreError, match=r"s3://bucket/zoo.*pip install 'zoopress\[s3\]'"):
        memory.machine("first", "s3://bucket/zoo").find(KEY)


def test_a_layout_of_another_version_is_refused(memory: SharedPlace) -> None:
    memory.write("zoopress-store.json", b'{"version": 2}')
    with pytest.raises(StoreError, match=r"layout 2.*Update zoopress"):
        memory.machine("first").find(KEY)
    memory.write("zoopress-store.json", b"[")
    with pytest.raises(StoreError, match="layout 'unreadable'"):
        memory.machine("second").find(KEY)


@pytest.mark.parametrize(
    "url", ["s3://ID:hunter2@bucket/zoo", "s3://ID:hunt/er2@bucket/zoo", "s3://hunter@bucket/zoo"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match=r"s3://…@bucket/zoo holds credentials") as raised:
        Store(url)
    assert "hunt" not in str(raised.value)


@pytest.mark.parametrize("url", ["abfs://container@account.dfs.core.windows.net/zoo", "memory://a"])
def test_a_url_without_credentials_is_accepted(url: str) -> None:
    assert Store(url + "/").address == url


def test_a_run_on_another_machine_computes_nothing(memory: SharedPlace) -> None:
    write_zoo(memory.folder)
    card, recipe = read_zoo(memory.folder)
    first = compress(card, recipe, memory.folder / "out-1", memory.machine("first"))
    assert len(first.computed) == 4
    second = compress(card, recipe, memory.folder / "out-2", memory.machine("second"))
    assert second.computed == ()
    assert second.report.stages == first.report.stages
    assert second.report.artifact_sha256 == first.report.artifact_sha256
    stored = {one.key for one in list_stored(memory.machine("third"))}
    assert stored == set(first.report.store_keys)


def test_check_finds_a_flipped_byte_in_a_shared_store(place: SharedPlace) -> None:
    store = place.machine("first")
    keys = [digest(name) for name in "abc"]
    for key in keys:
        fill(store, key, {"file": key.encode()})
    assert dict(check(store)) == dict.fromkeys(keys, True)
    path = blob_path(sha256_of(keys[1].encode()))
    place.write(path, flip(place.read(path)))
    assert dict(check(store)) == {**dict.fromkeys(keys, True), keys[1]: False}
    assert dict(check(store)) == {keys[0]: True, keys[2]: True}


def age(place: SharedPlace, seconds: float) -> None:
    """Make everything of a shared folder older."""
    root = Path(place.url.removeprefix("file://"))
    for path in root.rglob("*"):
        when = path.stat().st_mtime - seconds
        os.utime(path, (when, when))


def test_collection_of_a_shared_store_frees_blobs_that_no_result_needs(
    folder: SharedPlace,
) -> None:
    store = folder.machine("first")
    old, used, shares = digest("old"), digest("used"), digest("shares")
    fill(store, old, {"own": b"1" * 100, "common": b"2" * 100})
    fill(store, used, {"own": b"3" * 100})
    age(folder, 40 * 86400)
    fill(store, shares, {"common": b"2" * 100})
    assert folder.machine("second").find(used) is not None  # a use on any machine counts
    folder.write("incoming/half", b"x")
    before = folder.names()
    planned = collect(store, Policy(max_age_s=30 * 86400), dry_run=True)
    assert planned.removed == [old]
    assert folder.names() == before
    done = collect(store, Policy(max_age_s=30 * 86400))
    assert done.removed == [old]
    assert done.left == 2
    assert {one.key for one in list_stored(store)} == {used, shares}
    assert len(folder.names("blobs")) == 2
    assert folder.names("incoming") == ["half"]  # an upload may be under way
    for machine in ("third", "fourth"):
        assert folder.machine(machine).find(shares) is not None
        assert folder.machine(machine).find(used) is not None
        assert folder.machine(machine).find(old) is None


def test_collection_of_a_shared_store_keeps_what_is_leased_or_just_uploaded(
    place: SharedPlace,
) -> None:
    store = place.machine("first")
    fill(store, digest("leased"))
    fill(store, digest("free"), {"own": b"4"})
    place.write(lease_path(digest("leased")), b"someone 1\n")
    place.write(blob_path(digest("upload under way")), b"half")
    young = collect(store, Policy(max_size_bytes=0))
    assert young.removed == []
    done = collect(store, Policy(max_size_bytes=0, grace_s=0))
    assert done.removed == [digest("free")]
    assert done.in_use == 1
    assert blob_path(digest("upload under way")) in place.names()
    assert place.machine("second").find(digest("leased")) is not None


def test_an_entry_that_cannot_be_read_now_is_not_taken_for_gone(
    folder: SharedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder.machine("first")
    fill(store)
    age(folder, 40 * 86400)
    before = folder.names()
    system = folder.raw[0]

    def fail(self: Any, path: str, **_: Any) -> bytes:
        if path.endswith(f"{KEY}.json"):
            raise ConnectionError("reset by peer")
        return Path(path).read_bytes()

    monkeypatch.setattr(type(system), "cat_file", fail)
    with pytest.raises(StoreError, match="reset by peer"):
        collect(store, Policy())
    assert folder.names() == before


def test_a_blob_about_to_be_collected_is_uploaded_again_by_who_needs_it(
    folder: SharedPlace,
) -> None:
    content = b"5" * 100
    sha256 = sha256_of(content)
    folder.write(blob_path(sha256), content)  # its entry was removed
    age(folder, 0.9 * 86400)
    fill(folder.machine("first"), KEY, {"file": content})
    found = RemoteFiles(folder.url).find(blob_path(sha256))
    assert found is not None
    assert time.time() - found.modified < 60


def test_the_warning_of_a_damaged_entry_reaches_people(
    folder: SharedPlace, caplog: pytest.LogCaptureFixture
) -> None:
    fill(folder.machine("first"))
    folder.write(entry_path(KEY), b"{}")
    with caplog.at_level(logging.WARNING, "zoopress.store"):
        assert folder.machine("second").find(KEY) is None
    assert f"entries/{KEY[:2]}/{KEY}.json" in caplog.text
