"""Checkpoints to `.zpz` and back: the same files, in little memory, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from zoopress.artifacts.checkpoints import decode_checkpoint, encode, encode_checkpoint, open_zpz
from zoopress.artifacts.checkpoints.safetensors_file import (
    SafetensorsFile,
    build_header,
    parse_header,
)
from zoopress.coding.layout import StoredTensor
from zoopress.coding.zpz import write_zpz
from zoopress.errors import ArtifactError, InputError, SourceError, ZoopressError
from zoopress.progress import Event, Reporter

DTYPES = sorted(safetensors.torch._TYPES.values(), key=str)


def shard(seed: int, count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{seed}.{i}.weight": torch.randn(64 + i, 90, generator=generator) / 9
        for i in range(count)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two shards, and the file that says which is where."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    places: dict[str, str] = {}
    for i in range(2):
        tensors = shard(i)
        tensors[f"half.{i}"] = torch.randn(300).to(torch.bfloat16)
        name = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors.torch.save_file(tensors, made / name, {"format": "pt", "part": str(i)})
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (made / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (made / "config.json").write_text("{}")
    return made


def weight_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if "safetensors" in p.name}


def test_shards_come_back_to_the_last_byte(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.zpz"
    encoded = encode_checkpoint(folder, out)
    assert (encoded.tensors, encoded.resumed) == (10, 0)
    assert encoded.bytes == out.stat().st_size < encoded.original_bytes
    with open_zpz(str(out)) as reader:
        decoded = decode_checkpoint(reader, tmp_path / "back")
    assert decoded.tensors == 10
    assert weight_files(tmp_path / "back") == weight_files(folder)
    assert {path.name for path in decoded.files} == weight_files(folder).keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "checkpoint", "model.zpz"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_of_every_type_comes_back_to_the_last_byte(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    octets = torch.randint(0, 2, (5 * 3 * dtype.itemsize,)).to(torch.uint8)
    tensor = octets.view(dtype).reshape(5, 3)
    tensors = {
        "b": tensor,
        "a": tensor[0, 0].clone(),
        "empty": tensor[:0].clone(),
        "ß.ü": tensor.clone(),
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path)
    encode_checkpoint(path, tmp_path / "m.zpz")
    with open_zpz(str(tmp_path / "m.zpz")) as reader:
        assert reader.info("b") == (str(dtype).removeprefix("torch."), (5, 3))
        decode_checkpoint(reader, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_types_that_torch_has_not_are_kept_as_bytes(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F4","shape":[6],"data_offsets":[0,3]}}   '
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2\3")
    encode_checkpoint(path, tmp_path / "m.zpz")
    with open_zpz(str(tmp_path / "m.zpz")) as reader:
        assert reader.info("a") == ("uint8", (3,))
        decode_checkpoint(reader, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_wanted_tensors_are_decoded_alone(folder: Path, tmp_path: Path) -> None:
    encode_checkpoint(folder, tmp_path / "m.zpz")
    with open_zpz(str(tmp_path / "m.zpz")) as reader:
        decode_checkpoint(reader, tmp_path / "one.safetensors", ["layers.1.2.weight", "half.0"])
        with pytest.raises(ArtifactError, match=r"no tensor 'half\.7'.*Did you mean"):
            decode_checkpoint(reader, tmp_path / "two.safetensors", ["half.7"])
    read = safetensors.torch.load_file(tmp_path / "one.safetensors")
    assert sorted(read) == ["half.0", "layers.1.2.weight"]
    assert torch.equal(read["layers.1.2.weight"], shard(1)["layers.1.2.weight"])


def test_any_zpz_file_becomes_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(9, 5), "steps": torch.arange(3), "mask": torch.rand(7) > 0.5}
    write_zpz(tmp_path / "m.zpz", {name: StoredTensor(t) for name, t in tensors.items()})
    with open_zpz(str(tmp_path / "m.zpz")) as reader:
        decode_checkpoint(reader, tmp_path / "m.safetensors")
    read = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read.keys() == tensors.keys()


def test_verifying_writes_nothing_and_finds_damage(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.zpz"
    encode_checkpoint(folder, out)
    with open_zpz(str(out)) as reader:
        assert decode_checkpoint(reader, None).files == []
        place = 5 + reader.stored_bytes("half.0") + reader.stored_bytes("half.1") + 999
    content = bytearray(out.read_bytes())
    content[place] ^= 255
    out.write_bytes(content)
    with open_zpz(str(out)) as reader, pytest.raises(ArtifactError, match=r"tensor 'layers\.0"):
        decode_checkpoint(reader, None)
    with open_zpz(str(out)) as reader, pytest.raises(ArtifactError, match=r"tensor 'layers\.0"):
        decode_checkpoint(reader, tmp_path / "back")
    assert not any((tmp_path / "back").iterdir())  # nothing half-written


def test_progress_reaches_the_end(folder: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    encode_checkpoint(folder, tmp_path / "m.zpz", reporter=Reporter([events.append]))
    shares = [event["fraction"] for event in events if event["event"] == "progress"]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1.0


# Interruptions


def _stopping_after(count: int) -> Reporter:
    """Return a reporter that interrupts an encode once so many tensors are coded."""
    seen: list[str] = []

    def listen(event: Event) -> None:
        if event["event"] == "progress" and event["text"] not in seen:
            seen.append(event["text"])
            if len(seen) > count:
                raise KeyboardInterrupt

    return Reporter([listen])


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> bytes:
    encode_checkpoint(folder, tmp_path / "whole.zpz")
    return (tmp_path / "whole.zpz").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 6])
def test_an_interrupted_encode_goes_on_and_gives_the_same_bytes(
    folder: Path, tmp_path: Path, whole: bytes, count: int
) -> None:
    out = tmp_path / "m.zpz"
    with pytest.raises(KeyboardInterrupt):
        encode_checkpoint(folder, out, reporter=_stopping_after(count))
    assert not out.exists()
    again = encode_checkpoint(folder, out)
    assert again.resumed == count
    assert out.read_bytes() == whole
    assert not list(tmp_path.glob("m.zpz.*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from zoopress.artifacts.checkpoints import encode_checkpoint
from zoopress.progress import Reporter
seen = set()
def listen(event):
    seen.add(event.get("text"))
    if len(seen) > 6:
        os.kill(os.getpid(), signal.SIGKILL)
encode_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), reporter=Reporter([listen]))
"""


def test_a_killed_encode_goes_on_and_gives_the_same_bytes(
    folder: Path, tmp_path: Path, whole: bytes
) -> None:
    out = tmp_path / "m.zpz"
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    again = encode_checkpoint(folder, out)
    assert 0 < again.resumed < again.tensors
    assert out.read_bytes() == whole


def _left(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


@pytest.mark.parametrize("damage", ["a byte", "the end", "the journal", "its last line"])
def test_what_a_crash_damaged_is_encoded_again(
    folder: Path, tmp_path: Path, whole: bytes, damage: str
) -> None:
    out = tmp_path / "m.zpz"
    with pytest.raises(KeyboardInterrupt):
        encode_checkpoint(folder, out, reporter=_stopping_after(5))
    part, journal = _left(out, "part"), _left(out, "part.journal")
    content = bytearray(part.read_bytes())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "the end":
        part.write_bytes(content[: len(content) // 2])
    elif damage == "the journal":
        journal.unlink()
    else:
        journal.write_text(journal.read_text()[:-20])
    again = encode_checkpoint(folder, out)
    assert again.resumed == {"the journal": 0, "its last line": 4}.get(damage, again.resumed) < 5
    assert out.read_bytes() == whole


@pytest.mark.parametrize("what", ["input", "coder"])
def test_another_input_or_coder_starts_anew_and_says_so(
    folder: Path, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "m.zpz"
    with pytest.raises(KeyboardInterrupt):
        encode_checkpoint(folder, out, reporter=_stopping_after(3))
    if what == "input":
        safetensors.torch.save_file(shard(0), folder / "model-00001-of-00002.safetensors")
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if event["event"] == "warning":
            warnings.append(event["text"])

    again = encode_checkpoint(
        folder,
        out,
        coder="auto" if what == "input" else "static",
        reporter=Reporter([listen]),
    )
    assert again.resumed == 0
    assert len(warnings) == 1
    assert "starts anew" in warnings[0]


def test_an_input_that_changes_under_way_is_an_error(folder: Path, tmp_path: Path) -> None:
    changed = folder / "model-00001-of-00002.safetensors"

    def touch(event: Event) -> None:
        if event["event"] == "progress":
            os.utime(changed, ns=(1, 1))

    with pytest.raises(SourceError, match=r"00001-of-00002\.safetensors changed while"):
        encode_checkpoint(folder, tmp_path / "m.zpz", reporter=Reporter([touch]))
    assert not (tmp_path / "m.zpz").exists()


def test_an_input_that_gets_shorter_under_way_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(shard(0), path)
    file = SafetensorsFile(path)
    os.truncate(path, 2000)
    with pytest.raises(SourceError, match="cannot be read: it became shorter"):
        file.read(0, file.slices["layers.0.3.weight"].stop)
    file.close()


def test_a_full_disk_is_told_and_nothing_is_lost(
    folder: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = encode.Journal.write
    written = 0

    def fill(journal: Any, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 60_000:
            raise OSError(errno.ENOSPC, "no space")
        return write(journal, data)

    monkeypatch.setattr(encode.Journal, "write", fill)
    out = tmp_path / "m.zpz"
    with pytest.raises(ZoopressError, match=r"No space left.*m\.zpz\.part; make room"):
        encode_checkpoint(folder, out)
    monkeypatch.undo()
    assert encode_checkpoint(folder, out).resumed > 0
    assert out.read_bytes() == whole


def test_two_encodes_of_one_file_at_once_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.zpz"
    errors: list[str] = []

    def second(event: Event) -> None:
        if event["event"] == "progress" and not errors:
            with pytest.raises(InputError) as caught:
                encode_checkpoint(folder, out)
            errors.append(str(caught.value))

    encode_checkpoint(folder, out, reporter=Reporter([second]))
    assert "Another process is writing" in errors[0]
    assert out.exists()


def test_what_is_there_is_replaced_only_on_demand(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.zpz"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        encode_checkpoint(folder, out)
    assert out.read_bytes() == b"mine"
    encode_checkpoint(folder, out, force=True)
    target = tmp_path / "back"
    target.mkdir()
    (target / "model-00002-of-00002.safetensors").write_bytes(b"mine")
    with open_zpz(str(out)) as reader:
        with pytest.raises(InputError, match="exists already"):
            decode_checkpoint(reader, target)
        decode_checkpoint(reader, target, force=True)
    assert weight_files(target) == weight_files(folder)


# Checkpoints that are none


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.zpz"
    second = folder / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    with pytest.raises(SourceError, match=r"00002-of-00002\.safetensors is not a whole"):
        encode_checkpoint(folder, out)
    second.unlink()
    with pytest.raises(SourceError, match=r"00002-of-00002\.safetensors cannot be opened"):
        encode_checkpoint(folder, out)
    with pytest.raises(SourceError, match="nothing cannot be opened"):
        encode_checkpoint(tmp_path / "nothing", out)
    second.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(SourceError, match="is both in"):
        encode_checkpoint(folder, out)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(SourceError, match="does not map tensors to files beside it"):
        encode_checkpoint(folder, out)
    index.unlink()
    with pytest.raises(InputError, match=r"has model-00001.*Name a file"):
        encode_checkpoint(folder, out)
    assert not list(tmp_path.glob("m.zpz*"))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_impossible_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        parse_header(header, 4)


@pytest.mark.parametrize(
    "note",
    [
        {"files": [["../x.safetensors", "HEADER"]], "index": None},
        {"files": [["a/b", "HEADER"]], "index": None},
        {"files": [["x", "{}"]], "index": ["y", 3]},
        {"files": [["x", "HEADER"], ["x", "HEADER"]], "index": None},
        {"files": [["x", "BAD"]], "index": None},
        {"files": 3, "index": None},
        {"files": [["x", "HEADER"]]},
    ],
)
def test_hostile_notes_are_refused(tmp_path: Path, note: dict[str, Any]) -> None:
    from zoopress.coding.zpz.sources import TensorSource
    from zoopress.coding.zpz.writer import ZpzWriter

    header = build_header({"a": ("float32", (3,))}).decode()
    text = json.dumps(note).replace('"HEADER"', json.dumps(header))
    text = text.replace('"BAD"', json.dumps(header.replace("F32", "I32")))
    with (tmp_path / "m.zpz").open("wb") as file:
        made = ZpzWriter(file)
        list(made.write(["a"], lambda name: TensorSource(StoredTensor(torch.ones(3)))))
        made.finish(text.encode())
    with open_zpz(str(tmp_path / "m.zpz")) as reader:
        with pytest.raises(ArtifactError, match="original files cannot be used"):
            decode_checkpoint(reader, tmp_path / "out")
        decode_checkpoint(reader, tmp_path / "a.safetensors", ["a"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "m.zpz"]
