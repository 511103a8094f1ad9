"""The store: results appear whole or not at all, and damaged ones are never used."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from zoopress.errors import StoreError
from zoopress.store import Store, digest, file_digest, write_atomic

KEY = digest("a key")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def fill(store: Store, key: str = KEY, content: bytes = b"weights" * 50) -> Path:
    with store.claim(key) as claim:
        (claim.staging / "artifact").mkdir()
        (claim.staging / "artifact" / "model.bin").write_bytes(content)
        (claim.staging / "empty").touch()
        return claim.commit({"figure": 0.5, "name": "x"}).path


def files_below(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_the_root_is_the_environments_or_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOOPRESS_STORE", str(tmp_path))
    assert Store().root == tmp_path
    monkeypatch.delenv("ZOOPRESS_STORE")
    assert Store().root.parent.name == "zoopress"


@given(JSON)
def test_a_digest_does_not_depend_on_the_order_of_keys(data: Any) -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return [reversed_keys(v) for v in value] if isinstance(value, list) else value

    assert digest(data) == digest(reversed_keys(data))
    assert digest(data) != digest([data])


@given(record=st.dictionaries(st.text(max_size=5), JSON), content=st.binary(max_size=99))
def test_what_is_committed_is_found_with_record_and_files(
    record: dict[str, Any], content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.claim(KEY) as claim:
        assert claim.entry is None
        (claim.staging / "file").write_bytes(content)
        committed = claim.commit(record)
    found = store.find(KEY)
    assert found == committed == claim.entry
    assert found is not None
    assert found.record == record
    assert (found.path / "file").read_bytes() == content
    assert store.find(digest("another key")) is None


def test_a_second_claim_sees_the_result_of_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = fill(store)
    with store.claim(KEY, lambda: pytest.fail("nobody holds the lock")) as claim:
        assert claim.entry is not None
        assert claim.entry.path == path


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError("user's file")])
def test_nothing_is_left_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(type(error)) as raised, store.claim(KEY) as claim:  # noqa: PT012
        (claim.staging / "half").write_text("done")
        raise error
    assert raised.value is error
    assert store.find(KEY) is None
    assert {name for name in files_below(tmp_path) if not name.endswith(".lock")} == set()
    assert not any((tmp_path / "staging").iterdir())
    assert fill(store)  # the lock is free again


def test_a_result_that_was_not_committed_is_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.claim(KEY) as claim:
        (claim.staging / "model").write_text("done, but a gate failed")
    assert store.find(KEY) is None
    assert not any((tmp_path / "staging").iterdir())


def test_a_checkpoint_outlives_a_failed_run_and_not_a_commit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.claim(KEY) as claim:  # noqa: PT012
        (claim.checkpoint / "step").write_text("7")
        raise RuntimeError
    with store.claim(KEY) as claim:
        assert (claim.checkpoint / "step").read_text() == "7"
        folder = claim.checkpoint
        claim.commit({})
    assert not folder.exists()


def damage_of(entry: Path) -> list[Path]:
    return [p for p in sorted(entry.rglob("*")) if p.is_file() and p.stat().st_size]


@given(data=st.data())
def test_an_entry_with_a_flipped_bit_anywhere_is_set_aside_and_not_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    victim = data.draw(st.sampled_from(damage_of(fill(store))))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    found = store.find(KEY)
    if found is not None:  # a bit of the white space between JSON's tokens
        assert victim.name == "record.json"
        assert found.record == {"figure": 0.5, "name": "x"}
        return
    assert len(list((store.root / "quarantine").iterdir())) == 1
    assert fill(store)
    assert store.find(KEY) is not None


@pytest.mark.parametrize("name", ["record.json", "artifact/model.bin", "empty"])
@pytest.mark.parametrize("how", ["remove", "truncate", "append", "directory", "link"])
def test_an_entry_with_a_changed_file_is_set_aside_and_not_found(
    name: str, how: str, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    victim = fill(store) / name
    if how == "truncate" and name == "empty":
        pytest.skip("it is empty as it is")
    if how == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif how == "append":
        victim.write_bytes(victim.read_bytes() + b"}")
    else:
        victim.unlink()
    if how == "directory":
        victim.mkdir()
    elif how == "link":
        victim.symlink_to("/nowhere")
    assert store.find(KEY) is None
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert (aside / "entry").is_dir()
    assert not victim.parent.exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": "a"}', "null", "[" * 9999, '{"sha256":1}'])
def test_a_record_that_is_something_else_is_set_aside(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (fill(store) / "record.json").write_text(text)
    assert store.find(KEY) is None


def test_an_entry_moved_to_another_key_is_not_found_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = digest("another key")
    (tmp_path / "entries" / other[:2]).mkdir(parents=True)
    shutil.move(fill(store), tmp_path / "entries" / other[:2] / other)
    assert store.find(other) is None


def test_damage_that_cannot_be_set_aside_still_counts_as_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (fill(store) / "artifact" / "model.bin").unlink()
    (tmp_path / "quarantine").write_text("a file where the folder should be")
    assert store.find(KEY) is None


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from zoopress.store import Store

store, mode, signals = Store(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
with store.claim({key!r}) as claim:
    if claim.entry is not None:
        print("found", claim.entry.record["by"])
        sys.exit()
    (claim.staging / "artifact").mkdir()
    (claim.staging / "artifact" / "half").write_bytes(b"x" * 1000)
    (claim.checkpoint / "step").write_text("3")
    (signals / mode).touch()
    while not (signals / "go").exists():
        time.sleep(0.01)
    claim.commit({{"by": mode}})
    print("computed", mode)
"""


def start(root: Path, mode: str, signals: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(key=KEY), str(root), mode, str(signals)],
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None
        threading.Event().wait(0.01)


def test_a_second_process_waits_for_the_first_and_finds_its_result(tmp_path: Path) -> None:
    root, signals = tmp_path / "store", tmp_path / "signals"
    signals.mkdir()
    with start(root, "first", signals) as first:
        wait_for(signals / "first", first)
        waited = threading.Event()
        results: list[Any] = []

        def second() -> None:
            with Store(root).claim(KEY, waited.set) as claim:
                results.append(claim.entry)

        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(60)
        assert results == []
        (signals / "go").touch()
        thread.join(60)
        assert first.communicate()[0] == "computed first\n"
    assert results[0].record == {"by": "first"}


def test_what_a_killed_process_left_is_swept_and_never_trusted(tmp_path: Path) -> None:
    root, signals = tmp_path / "store", tmp_path / "signals"
    signals.mkdir()
    with start(root, "killed", signals) as process:
        wait_for(signals / "killed", process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert any((root / "staging").iterdir())
    store = Store(root)
    assert store.find(KEY) is None
    with store.claim(KEY, lambda: pytest.fail("the kernel frees a dead process's lock")) as claim:
        assert claim.entry is None
        assert not any((root / "staging").iterdir())
        assert not any(claim.staging.iterdir())
        assert (claim.checkpoint / "step").read_text() == "3"


def test_a_store_that_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file" / "store")
    assert store.find(KEY) is None
    with pytest.raises(StoreError, match=r"Cannot lock the store at .*file.*ZOOPRESS_STORE"):  # noqa: SIM117
        with store.claim(KEY):
            pytest.fail("there is no lock")


def test_a_store_whose_staging_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("no folder")
    with pytest.raises(StoreError, match=r"Cannot write to the store .*--store"):
        fill(Store(tmp_path))
    (tmp_path / "staging").unlink()
    (tmp_path / "entries").write_text("no folder")
    with pytest.raises(StoreError, match=r"Cannot write to the store .*--store"):
        fill(Store(tmp_path))
    assert not any((tmp_path / "staging").iterdir())


def test_a_full_disk_is_named_with_a_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match=r"No space left.*Finished stages are safe.*Free space"):  # noqa: PT012, SIM117
        with store.claim(KEY) as claim:
            (claim.staging / "model").symlink_to("/dev/full")
            with (claim.staging / "model").open("wb", buffering=0) as stream:
                stream.write(b"x")
    assert store.find(KEY) is None


def test_an_error_about_another_file_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Store(tmp_path / "store").claim(KEY):
        (tmp_path / "missing data").read_text()


def test_a_files_hash_follows_its_content(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "file"
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        assert store.hash_file(path) == store.hash_file(path) == file_digest(path)
    blocked = Store(path / "no store")
    assert blocked.hash_file(path) == file_digest(path)


def test_a_file_written_atomically_is_old_or_new_and_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "disk gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk gone"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert files_below(tmp_path) == {"file"}
