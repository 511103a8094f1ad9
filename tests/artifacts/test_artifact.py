"""The artifact: what is saved comes back exactly, and nothing in the folder is trusted."""

import copy
import json
import pickle
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.manifest import MANIFEST, MAX_MANIFEST_BYTES, Base, read_manifest
from zoopress.artifacts.names import expand, to_pattern
from zoopress.coding.bits import pack_codes
from zoopress.coding.zpz.writer import FOOT
from zoopress.errors import ArtifactError, StageError, StoreError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import Plugins
from zoopress.store import Store, digest, file_digest
from zoopress_plugins.quantization.weight_quantization import quantize
from zoopress_zoo.factory import Factory
from zoopress_zoo.transformers_models import Transformers

BASE = Base(name="tiny", source="path:x", revision="local", size_bytes=9, task="fidelity")
CONTAINERS = ["safetensors", "zpz"]


class Everything(nn.Module):
    """Tensors of every sort that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 10)
        self.first = nn.Linear(10, 12)
        self.second = nn.Linear(12, 10)
        self.conv = nn.Conv1d(4, 6, 3)
        self.lstm = nn.LSTM(10, 3)
        self.output = nn.Linear(10, 11, bias=False)
        self.output.weight = self.embedding.weight
        self.twin = self.first  # the same module under two names
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("flags", torch.ones(13, dtype=torch.bool))
        self.register_buffer("few", torch.tensor([True, False]))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.register_buffer("also", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.second(self.first(self.embedding(input)).relu())
        hidden = hidden + self.conv(hidden[:, :4])[:, :1].mean() + self.scalar
        hidden = hidden + self.lstm(hidden)[0].sum(-1, keepdim=True)
        result: Tensor = self.output(hidden)
        return result


INPUT = torch.arange(10).view(2, 5)


def everything(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Everything().to(dtype).eval()


def factory(make: Callable[..., nn.Module] = Everything) -> Factory:
    found = Factory(Path(), {"factory": "canary_module:run", "arguments": {}})
    found.use_factory(make)
    return found


def save(folder: Path, model: Model, **options: Any) -> None:
    save_artifact(folder, model, factory(), BASE, {}, **options)


def load(folder: Path, plugins: Plugins) -> Model:
    return load_artifact(folder, plugins, Everything)[0]


def pack(model: Model, weight: Any, bits: int, group: int | None, symmetric: bool) -> None:
    codes, scale, zero = quantize(weight.matrix(), bits, group, symmetric, False)
    tensors = {"codes": pack_codes(codes, bits), "scale": scale}
    if zero is not None:
        tensors["zero_point"] = zero
    size = min(group or codes.shape[1], codes.shape[1])
    arguments = {"bits": bits, "group_size": size, "symmetric": symmetric}
    model.pack(weight, "quantized", arguments, tensors)


def shrink(model: Model, keep: list[int]) -> None:
    index = torch.tensor(keep)
    rows = {"weight": (0, index), "bias": (0, index)}
    model.select("first", rows, {"out_features": len(keep)})
    model.select("second", {"weight": (1, index)}, {"in_features": len(keep)})


def factor(model: Model, path: str, rank: int) -> None:
    layer = model.module.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    u, s, v = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
    tensors = {
        "up.weight": (u * s)[:, :rank].to(layer.weight.dtype),
        "down.weight": v[:rank].to(layer.weight.dtype),
        "up.bias": layer.bias.detach(),
    }
    model.replace(path, "factored_linear", {"rank": rank}, tensors)


def octets(tensor: Tensor) -> bytes:
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return bytes(array.tobytes())


def assert_same(one: Model, other: Model) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert octets(tensor) == octets(second[name]), name
    assert one.masks.keys() == other.masks.keys()
    for name, mask in one.masks.items():
        assert torch.equal(mask, other.masks[name]), name
    assert sorted(map(repr, one.edits)) == sorted(map(repr, other.edits))
    assert one.storage == other.storage


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    storage=st.sampled_from(CONTAINERS),
    keep=st.none() | st.sets(st.integers(0, 11), min_size=1, max_size=11),
    rank=st.none() | st.integers(1, 3),
    prune=st.none() | st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    grid=st.none() | st.tuples(st.integers(2, 8), st.sampled_from([None, 3, 4, 7]), st.booleans()),
    kinds=st.sets(
        st.sampled_from(["linear", "conv", "embedding", "recurrent", "parameter", "vector"]),
        min_size=1,
    ),
    max_shard_bytes=st.sampled_from([1, 200, 1 << 30]),
)
def test_a_saved_model_comes_back_exactly(
    seed: int,
    dtype: torch.dtype,
    storage: str,
    keep: set[int] | None,
    rank: int | None,
    prune: float | None,
    grid: tuple[int, int | None, bool] | None,
    kinds: set[str],
    max_shard_bytes: int,
    plugins: Plugins,
) -> None:
    model = Model(everything(seed, dtype), plugins.layers, storage=storage)
    generator = torch.Generator().manual_seed(seed)
    if keep is not None:
        shrink(model, sorted(keep))
    if rank is not None:
        factor(model, "second", min(rank, len(keep or range(12))))
    weights = [w for w in model.weights(kinds) if w.parameter.numel()]
    for weight in weights:
        if prune is not None:
            model.mask(weight, torch.rand(weight.parameter.shape, generator=generator) >= prune)
        if grid is not None:
            pack(model, weight, *grid)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), model, max_shard_bytes=max_shard_bytes)
        loaded = load(Path(folder), plugins)
    assert_same(model, loaded)
    tensors = loaded.tensors()
    for name in tensors:
        if name.startswith("embedding.weight"):
            tied = name.replace("embedding", "output")
            assert tensors[name].data_ptr() == tensors[tied].data_ptr()
    with torch.inference_mode():
        assert torch.equal(loaded.module(INPUT), model.module(INPUT))
    assert not loaded.module.training


def test_a_small_shard_limit_splits_the_file_and_every_shard_is_listed(
    tmp_path: Path, plugins: Plugins
) -> None:
    save(tmp_path, Model(everything(), plugins.layers), max_shard_bytes=500)
    manifest = read_manifest(tmp_path)
    assert len(manifest.weights) > 2
    assert set(manifest.weights) == {p.name for p in tmp_path.glob("*.safetensors")}
    assert_same(Model(everything()), load(tmp_path, plugins))


def test_a_pruned_weight_changed_behind_its_mask_is_not_saved(
    tmp_path: Path, plugins: Plugins
) -> None:
    model = Model(everything(), plugins.layers)
    weight = next(model.weights(["conv"]))
    model.mask(weight, torch.zeros(weight.parameter.shape, dtype=torch.bool))
    with torch.no_grad():
        weight.parameter[0, 0, 0] = 1
    with pytest.raises(StageError, match=r"'conv\.weight' has values other than zero"):
        save(tmp_path, model)
    assert not (tmp_path / MANIFEST).exists()


def test_a_full_disk_while_saving_is_reported_as_such(plugins: Plugins, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    with pytest.MonkeyPatch.context() as patch, Store(tmp_path).claim(digest("k")) as claim:
        patch.setattr("zoopress.artifacts.tensor_files.save_file", full)
        with pytest.raises(OSError, match="No space left") as failed:
            save(claim.staging, Model(everything(), plugins.layers))
        assert isinstance(claim.store.local.explained("write to", failed.value), StoreError)


# From here on: artifacts of strangers.


@pytest.fixture(scope="module", params=CONTAINERS)
def artifact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, plugins: Plugins
) -> Path:
    """An artifact with masks, quantized, factored, shrunk and tied layers."""
    folder = tmp_path_factory.mktemp("artifact")
    model = Model(everything(), plugins.layers, storage=request.param)
    shrink(model, [1, 4, 5, 7])
    factor(model, "second", 2)
    for weight in list(model.weights(["linear", "recurrent", "embedding"])):
        model.mask(weight, weight.parameter > -0.3)
    for weight in list(model.weights(["recurrent", "embedding"])):
        pack(model, weight, 4, 4, False)
    (folder / "note.txt").write_text("carried along")
    others = {"tokenizer.json": folder / "note.txt"}
    lineage = [{"technique": "x", "claims": [{"reached": 0.5}]}]
    save_artifact(folder, model, factory(), BASE, others, lineage)
    return folder


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def rehash(folder: Path) -> None:
    """Write the sizes and digests of the files as they are now, as an attacker would."""

    def change(manifest: Any) -> None:
        for name, record in manifest["files"].items():
            record["bytes"] = (folder / name).stat().st_size
            record["sha256"] = file_digest(folder / name)

    edit(folder, change)


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def weight_file(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".zpz"))


@pytest.fixture(scope="module")
def reference(artifact: Path, plugins: Plugins) -> dict[str, Any]:
    """Shape of each tensor as it should be loaded."""
    return {name: tensor.shape for name, tensor in load(artifact, plugins).tensors().items()}


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@pytest.fixture
def no_memory_spent() -> Iterator[None]:
    """Fail if a test makes the process grow by more than a hostile file should get."""
    before = peak_memory()
    yield
    assert peak_memory() - before < 600 << 20


def refused_or_sound(folder: Path, plugins: Plugins, reference: dict[str, Any]) -> None:
    """Load; what loads must have the shapes it should have."""
    try:
        loaded = load(folder, plugins)
    except ArtifactError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    else:
        assert {n: t.shape for n, t in loaded.tensors().items()} == reference


def test_a_file_cut_off_at_any_byte_is_refused(copied: Path, plugins: Plugins) -> None:
    for path in (copied / MANIFEST, weight_file(copied), copied / "tokenizer.json"):
        content = path.read_bytes()
        for size in range(0, len(content), 1 if len(content) < 2000 else 13):
            path.write_bytes(content[:size])
            with pytest.raises(ArtifactError, match=r"zoopress|model|compressed|tokenizer"):
                load(copied, plugins)
        path.write_bytes(content)
    assert load(copied, plugins)


def test_a_tensor_file_cut_off_at_any_byte_is_refused_even_with_right_checksums(
    copied: Path, plugins: Plugins
) -> None:
    path = weight_file(copied)
    content = path.read_bytes()
    for size in range(0, len(content), 61):
        path.write_bytes(content[:size])
        rehash(copied)
        with pytest.raises(ArtifactError):
            load(copied, plugins)


def test_a_missing_file_is_named(copied: Path, plugins: Plugins) -> None:
    for path in sorted(copied.iterdir()):
        if path.name == "note.txt":
            continue
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ArtifactError, match=path.name):
            load(copied, plugins)
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="no such folder"):
        load(copied / "nowhere", plugins)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), recomputed=st.booleans())
def test_a_flipped_bit_gives_an_error_or_a_model_of_the_right_shapes(
    data: st.DataObject,
    recomputed: bool,
    copied: Path,
    plugins: Plugins,
    reference: dict[str, Any],
    no_memory_spent: None,
) -> None:
    path = copied / data.draw(st.sampled_from([MANIFEST, weight_file(copied).name]))
    content = path.read_bytes()
    manifest = (copied / MANIFEST).read_bytes()
    # Headers and indices are where a bit tells most.
    near = st.one_of(
        st.integers(0, len(content) - 1),
        st.integers(0, min(2000, len(content) - 1)),
        st.integers(max(0, len(content) - 1500), len(content) - 1),
    )
    damaged = bytearray(content)
    damaged[data.draw(near)] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        if recomputed and path.name != MANIFEST:
            rehash(copied)
            refused_or_sound(copied, plugins, reference)
        elif path.name == MANIFEST:
            refused_or_sound(copied, plugins, reference)
        else:
            with pytest.raises(ArtifactError, match="SHA-256"):
                load(copied, plugins)
    finally:
        path.write_bytes(content)
        (copied / MANIFEST).write_bytes(manifest)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_index_with_right_checksums_is_refused_or_gives_right_shapes(
    data: st.DataObject,
    copied: Path,
    plugins: Plugins,
    reference: dict[str, Any],
    no_memory_spent: None,
) -> None:
    path = weight_file(copied)
    content = path.read_bytes()
    manifest = (copied / MANIFEST).read_bytes()
    if path.suffix == ".zpz":
        _, length = FOOT.unpack(content[-FOOT.size :])
        offset = len(content) - FOOT.size - length
        index = bytearray(content[offset : offset + length])
        for _ in range(data.draw(st.integers(1, 3))):
            index[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[:offset] + index + FOOT.pack(zlib.crc32(index), length))
    else:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        name = data.draw(st.sampled_from(sorted(header)))
        field = data.draw(st.sampled_from(["shape", "dtype", "data_offsets", "extra"]))
        numbers = st.integers(-1, 1 << 64) | st.integers(0, 40)
        header[name][field] = data.draw(
            st.lists(numbers, max_size=3)
            | st.sampled_from(["F32", "F4", "I64", "BOOL", "U8", "F8_E4M3", "F64", "C64", "X"])
        )
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    try:
        rehash(copied)
        refused_or_sound(copied, plugins, reference)
    finally:
        path.write_bytes(content)
        (copied / MANIFEST).write_bytes(manifest)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 20)
    | st.sampled_from([10**7, 10**12, 2**63, -(2**63), 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [
            *("", "first", "second", "lstm", "embedding.weight", "weight", "codes", "scale"),
            *("quantized", "factored_linear", "alias", "masked", "boolean", "zeros", "zpz"),
            *("{first,second}", "{0..9}", "{0..99999999}" * 9, "{", "{a,", "conv{,.weight}"),
            *("safetensors", "../x", "/etc/passwd", "os:system", "x.pkl", "resize", "pack"),
        ]
    )
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["modules", "parameters", "names", "module", "edit", "of", "tied", "form", "rank"]
            ),
            inner,
        )
    ),
    max_leaves=5,
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_manifest_loads_or_is_refused_with_an_artifact_error(
    data: st.DataObject, copied: Path, plugins: Plugins, no_memory_spent: None
) -> None:
    original = (copied / MANIFEST).read_bytes()
    manifest = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        place: Any = manifest
        section = data.draw(st.sampled_from(["edits", "tensors", "any"]))
        if section != "any" and isinstance(manifest.get(section), dict | list):
            place = manifest[section]
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            action = data.draw(st.sampled_from(["replace", "remove", "repeat"]))
            if action == "replace":
                place[key] = data.draw(JSON)
            elif action == "remove":
                del place[key]
            elif isinstance(place, list):
                place.insert(data.draw(st.integers(0, len(place))), copy.deepcopy(place[key]))
            else:
                place[data.draw(st.sampled_from(keys))] = copy.deepcopy(place[key])
            break
    (copied / MANIFEST).write_text(json.dumps(manifest))
    try:
        load(copied, plugins)
    except ArtifactError as error:
        assert str(copied) in str(error) or "artifact" in str(error)  # noqa: PT017
    finally:
        (copied / MANIFEST).write_bytes(original)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\x80\x04K\x01.", "is not JSON"),
        (b"[]", "field 'format'"),
        (b"null", "field 'format'"),
        (b'{"format": "zoopress"}', "field 'version' is None.*Update zoopress"),
        (b'{"format": "zoopress", "version": 1}', "field 'version' is 1"),
        (b'{"format": "zoopress", "version": 3}', "field 'version' is 3.*Update zoopress"),
        (b'{"format": "zoopress", "version": 2}', "field 'base'"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"format": "zoopress", "version": NaN}', "NaN is no number"),
        (b'{"format": "zoopress", "version": 2, "x": -Infinity}', "Infinity is no number"),
        (b"9" * 10_000, "is not JSON"),
        (b'{"format": "zoopress", "version": "\\ud800"}', "field 'version'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    content: bytes, message: str, tmp_path: Path, plugins: Plugins
) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"zoopress\.json: .*{message}"):
        load(tmp_path, plugins)


def test_a_huge_manifest_is_not_read(tmp_path: Path, plugins: Plugins) -> None:
    with (tmp_path / MANIFEST).open("wb") as stream:
        stream.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ArtifactError, match="larger than"):
        load(tmp_path, plugins)


@pytest.mark.parametrize("field", ["base", "architecture", "storage", "weights", "files"])
def test_a_missing_field_is_named(field: str, copied: Path, plugins: Plugins) -> None:
    edit(copied, lambda manifest: manifest.pop(field))
    with pytest.raises(ArtifactError, match=rf"zoopress\.json: field '{field}'.*again"):
        load(copied, plugins)


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/etc/passwd", "..", "a/../b", "a//b", "", ".hidden", "a\\b", "a\0b"),
        *("x" * 999, "model.pkl", "weights.bin", "x.PT", "C:/x", "a/", "\u202ea"),
    ],
)
def test_a_file_name_that_leads_elsewhere_is_refused(
    name: str, copied: Path, plugins: Plugins
) -> None:
    def add(manifest: Any) -> None:
        manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}

    edit(copied, add)
    with pytest.raises(ArtifactError, match=r"zoopress\.json: field 'files"):
        load(copied, plugins)


def test_a_link_out_of_the_folder_is_refused_and_the_hubs_cache_is_not(
    copied: Path, tmp_path: Path, plugins: Plugins
) -> None:
    path = weight_file(copied)
    outside = tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"is a link out of the artifact.*Copy the file"):
        load(copied, plugins)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ArtifactError, match="is a link out of the artifact"):
        load(copied, plugins)
    path.unlink()
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "revision"
    blobs.mkdir(parents=True)
    shutil.move(outside, blobs / "0123")
    shutil.copytree(copied, snapshot)
    (snapshot / path.name).symlink_to("../../blobs/0123")
    assert load(snapshot, plugins)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "zip", "torch"])
def test_a_pickle_under_the_tensors_name_is_never_opened(
    how: str, copied: Path, tmp_path: Path, plugins: Plugins
) -> None:
    canary, path = tmp_path / "canary", weight_file(copied)
    if how == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif how == "torch":
        torch.save({"first.weight": Canary(canary)}, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Canary(canary)))
    rehash(copied)
    with pytest.raises(ArtifactError, match=path.name):
        load(copied, plugins)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


@pytest.mark.parametrize("name", ["x.pkl", "pytorch_model.bin", "sub/a.PT", "b.pth", "c.npy"])
def test_a_stray_pickle_is_refused_and_never_opened(
    name: str, copied: Path, tmp_path: Path, plugins: Plugins
) -> None:
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ArtifactError, match=r"may hold a pickle.*nothing was opened"):
        load(copied, plugins)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "record",
    [
        {"name": "os:system", "arguments": {"command": "touch canary"}},
        {"name": "canary_module:run"},
        {"name": "zoopress_zoo.factory:Factory"},
        {"name": "factory", "arguments": {"factory": "canary_module:run", "arguments": {}}},
        {"name": "factory", "arguments": {"factory": "os:system", "arguments": {"a": 1}}},
        {"name": "transformers", "arguments": {"class": "os.system"}},
        {"name": "transformers", "arguments": {"class": "pipeline"}},
        {"name": "transformers", "arguments": {"class": "BertConfig"}},
        {"name": "transformers", "arguments": {"class": "AutoModel"}},
        {"name": "transformers", "arguments": {"class": "PreTrainedModel"}},
        {"name": "transformers", "arguments": {"class": "__class__"}},
        {"name": "transformers", "arguments": {"class": ["BertModel"]}},
        {"name": "transformers", "arguments": {"class": "BertModel"}},
        {"name": "sentence_encoder", "arguments": {"class": "BertModel"}},
    ],
)
def test_an_architecture_that_names_something_else_is_refused_and_nothing_is_called(
    record: dict[str, Any],
    copied: Path,
    tmp_path: Path,
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\ndef run(**_): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    edit(copied, lambda manifest: manifest.update(architecture=record))
    with pytest.raises(ArtifactError) as refused:
        load_artifact(copied, plugins)
    assert str(copied) in str(refused.value)
    assert not canary.exists()


def test_arguments_that_do_not_fit_the_users_factory_are_refused(
    copied: Path, plugins: Plugins
) -> None:
    for arguments in ({"no_such": 1}, "text", [1], {"self": 1}):
        edit(copied, lambda m: m["architecture"].update(arguments={"arguments": arguments}))  # noqa: B023
        with pytest.raises(ArtifactError, match="factory"):
            load(copied, plugins)


RESIZE: dict[str, Any] = {"edit": "resize", "modules": "conv", "shapes": {}, "attributes": {}}
PACK: dict[str, Any] = {
    "edit": "pack",
    "parameters": "conv.weight",
    "packing": "quantized",
    "arguments": {"bits": 8, "group_size": 12, "symmetric": True},
}
REPLACE: dict[str, Any] = {
    "edit": "replace",
    "modules": "conv",
    "layer": "factored_conv",
    "arguments": {"rank": 2},
}


@pytest.mark.parametrize(
    "change",
    [
        {**RESIZE, "modules": "nothing"},
        {**RESIZE, "modules": "conv.__class__"},
        {**RESIZE, "modules": "conv..weight"},
        {**RESIZE, "shapes": {"nothing": [1]}},
        {**RESIZE, "shapes": {"weight": [10**12, 4, 3]}},
        {**RESIZE, "shapes": {"weight": [7, 4, 3]}},
        {**RESIZE, "shapes": {"weight": [-1, 4, 3]}},
        {**RESIZE, "shapes": {"weight": [0, 4, 3]}},
        {**RESIZE, "shapes": {"weight": [6]}},
        {**RESIZE, "shapes": {"weight": ["6", 4, 3]}},
        {**RESIZE, "shapes": {"weight": [True, 4, 3]}},
        {**RESIZE, "attributes": {"out_channels": 7}},
        {**RESIZE, "attributes": {"out_channels": 0}},
        {**RESIZE, "attributes": {"out_channels": -1}},
        {**RESIZE, "attributes": {"forward": 1}},
        {**RESIZE, "attributes": {"training": 1}},
        {**RESIZE, "attributes": {"__class__": 1}},
        {**RESIZE, "modules": "lstm.weight_ih_l0", "shapes": {"codes": [1, 5]}},
        {**RESIZE, "modules": "lstm.weight_ih_l0", "attributes": {"bits": 2}},
        {**RESIZE, "evil": 1},
        {**REPLACE, "modules": ""},
        {**REPLACE, "layer": "nothing"},
        {**REPLACE, "layer": "quantized"},
        {**REPLACE, "layer": "os:system"},
        {**REPLACE, "layer": "factored_linear"},
        {**REPLACE, "arguments": {"rank": 10**12}},
        {**REPLACE, "arguments": {"rank": 0}},
        {**REPLACE, "arguments": {"rank": -3}},
        {**REPLACE, "arguments": {"rank": "2"}},
        {**REPLACE, "arguments": {"rank": 2.0}},
        {**REPLACE, "arguments": {"rank": True}},
        {**REPLACE, "arguments": {"rank": 2, "evil": 1}},
        {**REPLACE, "arguments": {"rank": [2]}},
        {**REPLACE, "arguments": {}},
        {**PACK, "parameters": "conv.nothing"},
        {**PACK, "parameters": "conv.forward"},
        {**PACK, "packing": "factored_conv"},
        {**PACK, "packing": "nothing"},
        {**PACK, "dtype": "int64"},
        {**PACK, "dtype": "load"},
        {**PACK, "parameters": "empty"},
        {**PACK, "parameters": "scalar"},
        {**PACK, "arguments": {"bits": 9, "group_size": 12, "symmetric": True}},
        {**PACK, "arguments": {"bits": 8, "group_size": 0, "symmetric": True}},
        {**PACK, "arguments": {"bits": 8, "group_size": 10**12, "symmetric": True}},
        {**PACK, "arguments": {"bits": "8", "group_size": 12, "symmetric": True}},
        {**PACK, "arguments": {"bits": 8}},
        {**PACK, "arguments": {"shape": "x"}},
        {**PACK, "parameters": "conv.{weight,nothing}"},
        {**PACK, "parameters": "{conv.weight,conv.weight}"},
        {**PACK, "parameters": ""},
        {**PACK, "module": "conv"},
        {**PACK, "attribute": "bias"},
        {**RESIZE, "module": "conv"},
        {**RESIZE, "parameters": "conv"},
        {**RESIZE, "modules": None},
        {**RESIZE, "modules": ["conv"]},
        {**RESIZE, "modules": "conv{"},
        {**RESIZE, "modules": "conv}"},
        {**RESIZE, "modules": "conv,"},
        {**RESIZE, "modules": "conv{}"},
        {**RESIZE, "modules": "conv\\"},
        {**RESIZE, "modules": "{0..999999999}"},
        {**RESIZE, "modules": "{0..9}" * 100_000},
        {**RESIZE, "modules": "{a,b}" * 100_000},
        {**RESIZE, "modules": "{" * 100_000},
        {**RESIZE, "modules": "{a," * 100_000},
        {**RESIZE, "modules": "{0..999}" + "x" * 100_000},
        {"edit": "run", "modules": "conv"},
        {"edit": ["run"], "modules": "conv"},
        {"edit": "replace"},
        "text",
        None,
    ],
)
def test_an_edit_that_cannot_be_is_refused_with_its_place(
    change: Any, copied: Path, plugins: Plugins, no_memory_spent: None
) -> None:
    edit(copied, lambda manifest: manifest["edits"].append(change))
    with pytest.raises(ArtifactError, match=r"zoopress\.json: .*edits"):
        load(copied, plugins)


def drop_entry(manifest: Any, name: str) -> None:
    """Let a manifest say nothing of a tensor, as if it were stored as it is."""
    for group in manifest["tensors"]:
        names = expand(group["names"], 999, 9999)
        if name in names:
            group["names"] = to_pattern([other for other in names if other != name] or ["-"])
    manifest["tensors"] = [group for group in manifest["tensors"] if group["names"] != "-"]


def set_tensor_entry(name: str, entry: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        manifest["tensors"].append({"names": name, **entry})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_tensor_entry("scalr", {"form": "masked"}), "'scalr' that the architecture has not"),
        (set_tensor_entry("scalar", {"form": "plain"}), "field 'tensors.scalar"),
        (set_tensor_entry("scalar", {"form": "pickle"}), "field 'tensors.scalar"),
        (set_tensor_entry("{scalar,scalar}", {"form": "zeros"}), "'scalar' has two forms"),
        (set_tensor_entry("flags", {"form": "zeros"}), "'flags' has two forms"),
        (set_tensor_entry("scalar", {"form": "zeros"}), "no codes with one code of zero"),
        (set_tensor_entry("{0..999999999}", {"form": "zeros"}), "stands for more than"),
        (set_tensor_entry("x", {"form": "zeros", "evil": 1}), "field 'tensors.x"),
        (lambda m: m.update(tensors={}), "field 'tensors': must be a list"),
        (lambda m: m.update(tensors=[3]), "item 0 must be an object"),
        (lambda m: m.update(tensors=[{"form": "zeros"}]), "in a string 'names'"),
        (lambda m: m.update(tensors=[]), "the architecture has torch.bool"),
        (set_tensor_entry("scalar", {"form": "alias"}), "field 'tensors.scalar"),
        (
            set_tensor_entry("scalar", {"form": "alias", "of": "scalar", "tied": True}),
            "'scalar' is referred to, but not stored",
        ),
        (
            set_tensor_entry("scalar", {"form": "alias", "of": "nothing", "tied": True}),
            "'nothing' is referred to, but not stored",
        ),
        (
            set_tensor_entry("scalar", {"form": "alias", "of": "conv.weight", "tied": True}),
            "'scalar' cannot be the same as 'conv.weight'",
        ),
        (
            set_tensor_entry("count", {"form": "alias", "of": "scalar", "tied": False}),
            "'count' cannot be the same as 'scalar'",
        ),
        (set_tensor_entry("conv.weight", {"form": "masked"}), "conv.weight@mask"),
        (set_tensor_entry("conv.weight", {"form": "boolean"}), "stored as bools"),
        (lambda m: drop_entry(m, "first.weight"), "'first.weight' is not in "),
        (lambda m: m.update(storage="pickle"), "field 'storage'"),
        (lambda m: m.update(weights=[]), "is not in"),
        (lambda m: m.update(weights=["tokenizer.json"]), "field 'weights'"),
        (lambda m: m.update(weights=m["weights"] * 2), "is stored twice"),
        (lambda m: m["files"]["tokenizer.json"].update(bytes=-1), "field 'files.tokenizer.json"),
        (lambda m: m["files"]["tokenizer.json"].update(sha256="0" * 64), "SHA-256 differs"),
    ],
)
def test_a_tensor_entry_that_does_not_fit_is_refused_with_its_name(
    change: Callable[[Any], Any], message: str, copied: Path, plugins: Plugins
) -> None:
    edit(copied, change)
    with pytest.raises(ArtifactError, match=message):
        load(copied, plugins)


def test_a_ring_of_aliases_is_refused(copied: Path, plugins: Plugins) -> None:
    names = ["first.bias", "twin.bias", "second.up.bias", "conv.bias"]

    def ring(manifest: Any) -> None:
        for i, name in enumerate(names):
            of = names[(i + 1) % len(names)]
            drop_entry(manifest, name)
            entry = {"form": "alias", "names": name, "of": of, "tied": bool(i % 2)}
            manifest["tensors"].append(entry)

    edit(copied, ring)
    with pytest.raises(ArtifactError, match="is referred to, but not stored"):
        load(copied, plugins)


def test_nothing_in_the_folder_is_written_by_loading(copied: Path, plugins: Plugins) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copied.iterdir()}
    load(copied, plugins)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in copied.iterdir()} == before


def test_a_safetensors_header_of_terabytes_is_refused(
    tmp_path: Path, plugins: Plugins, no_memory_spent: None
) -> None:
    save(tmp_path, Model(everything(), plugins.layers))
    path = tmp_path / "compressed.safetensors"
    for shape, offsets in (([10**6, 10**6], [0, 4]), ([10**6, 10**6], [0, 4 * 10**12])):
        header = json.dumps(
            {"first.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
        ).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        rehash(tmp_path)
        with pytest.raises(ArtifactError, match=r"compressed\.safetensors"):
            load(tmp_path, plugins)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    rehash(tmp_path)
    with pytest.raises(ArtifactError, match=r"compressed\.safetensors"):
        load(tmp_path, plugins)


# A factory whose module cannot be built without memory, and is as large as it is told.


class Wide(nn.Module):
    def __init__(self, width: int = 4, layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))


class Stubborn(Wide):
    def __init__(self, width: int = 4, layers: int = 1) -> None:
        torch.ones(2).sum().item()  # fails on the meta device
        super().__init__(width, layers)


@pytest.mark.parametrize("kind", [Wide, Stubborn])
@pytest.mark.parametrize("arguments", [{"width": 10**6}, {"layers": 10**7}])
def test_a_module_that_its_arguments_make_huge_is_refused_before_it_is_made(
    kind: type[nn.Module],
    arguments: dict[str, int],
    tmp_path: Path,
    plugins: Plugins,
    no_memory_spent: None,
) -> None:
    save_artifact(tmp_path, Model(kind().eval(), plugins.layers), factory(kind), BASE, {})
    assert load_artifact(tmp_path, plugins, kind)
    edit(tmp_path, lambda m: m["architecture"]["arguments"].update(arguments=arguments))
    with pytest.raises(ArtifactError, match="more than"):
        load_artifact(tmp_path, plugins, kind)


BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 12,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}


@pytest.fixture
def bert(tmp_path: Path, plugins: Plugins) -> Path:
    """An artifact of a tiny transformers model."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT))
    architecture = Transformers(folder, {"class": "BertModel"})
    model = Model(architecture.build().eval(), plugins.layers)
    save_artifact(folder, model, architecture, BASE, {"config.json": folder / "config.json"})
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**7},
        {"hidden_size": 10**12},
        {"vocab_size": 10**12},
        {"vocab_size": -1},
        {"max_position_embeddings": 10**12},
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": "x"},
        {"num_labels": 10**9},
        {"hidden_size": 7},
        {"num_attention_heads": 0},
        {"hidden_act": "__import__"},
        {"text_config": {"num_hidden_layers": 10**9}},
    ],
)
def test_a_hostile_config_of_transformers_is_refused_without_spending_memory(
    change: dict[str, Any], bert: Path, plugins: Plugins, no_memory_spent: None
) -> None:
    (bert / "config.json").write_text(json.dumps({**BERT, **change}))
    rehash(bert)
    with pytest.raises(ArtifactError, match="bert"):
        load_artifact(bert, plugins)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "null", '{"hidden_size": NaN}'])
def test_a_config_that_is_none_is_refused(text: str, bert: Path, plugins: Plugins) -> None:
    (bert / "config.json").write_text(text)
    rehash(bert)
    with pytest.raises(ArtifactError, match="bert"):
        load_artifact(bert, plugins)


def test_a_config_that_names_code_on_the_hub_loads_without_it(bert: Path, plugins: Plugins) -> None:
    hostile = {
        "auto_map": {"AutoModel": "evil/repo--modeling.Evil"},
        "attn_implementation": "kernels-community/evil",
        "_attn_implementation": "evil/kernel",
        "experts_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "evil"},
    }
    (bert / "config.json").write_text(json.dumps({**BERT, **hostile}))
    rehash(bert)
    loaded, _, _ = load_artifact(bert, plugins)
    assert "evil" not in str(loaded.module.config.to_dict())  # type: ignore[union-attr, operator]


def test_a_bfloat16_model_stays_one_and_keeps_its_ties_when_packed(
    tmp_path: Path, plugins: Plugins
) -> None:
    model = Model(everything(0, torch.bfloat16), plugins.layers)
    for weight in list(model.weights(["embedding", "conv"])):
        pack(model, weight, 8, None, True)
    save(tmp_path, model)
    loaded = load(tmp_path, plugins)
    assert {packed.dtype for packed in packed_weights(loaded.module).values()} == {torch.bfloat16}
    packed = packed_weights(loaded.module)
    assert packed["embedding.weight"].codes.data_ptr() == packed["output.weight"].codes.data_ptr()
    assert loaded.module(INPUT).dtype == torch.bfloat16
