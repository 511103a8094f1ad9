"""The plain reader agrees with the fast one, on whatever the writer writes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from zoopress.coding import reference
from zoopress.coding.bits import pack_codes
from zoopress.coding.layout import Integers, PackedCodes, StoredTensor
from zoopress.coding.reference import read_zpz
from zoopress.coding.zpz import ZpzReader, bands, index, write_zpz
from zoopress.evaluation.latency import measure_latency
from zoopress.plugins import Plugins
from zoopress.testing import run_chain, tiny_card


def _same(path: Path) -> int:
    """Assert that both readers say the same of a file; return how many tensors it has."""
    plain = read_zpz(path.read_bytes())
    with ZpzReader(path) as reader:
        assert list(plain) == reader.names()
        for name, tensor in plain.items():
            assert (tensor.dtype, tensor.shape) == reader.info(name)
            assert tensor.data == b"".join(piece.tobytes() for piece in reader.pieces(name)), name
    return len(plain)


@st.composite
def _stored(draw: st.DrawFn) -> StoredTensor:
    """A tensor of any type, with codes or integers in it or not."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["any", "codes", "integers"]))
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 60))
    spread = draw(st.sampled_from([0.0, 0.3, 5.0]))
    values = torch.randn(rows, columns, generator=generator) * spread
    if kind == "codes":
        bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
        codes = values.round().clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1).to(torch.int8)
        packed = pack_codes(codes.view(torch.uint8) & ((1 << bits) - 1), bits)
        return StoredTensor(packed, PackedCodes(bits, columns, signed))
    if kind == "integers":
        dtype = draw(st.sampled_from([torch.int8, torch.int16, torch.int32]))
        scan = draw(st.sampled_from(["rows", "columns"]))
        return StoredTensor(values.round().to(dtype), Integers(scan))
    name = draw(st.sampled_from([name for name, _ in bands.DTYPES]))
    dtype = getattr(torch, name)
    if not values.numel():  # torch cannot view it in another type
        return StoredTensor(torch.empty(rows, columns, dtype=dtype))
    octets = (values.abs() * 20).to(torch.uint8) & (1 if name == "bool" else 255)
    tensor: Tensor = octets.repeat(1, dtype.itemsize).view(dtype)
    return StoredTensor(tensor)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.text("abw.é", min_size=1, max_size=6), _stored(), max_size=4))
def test_both_readers_agree(tmp_path: Path, tensors: dict[str, StoredTensor]) -> None:
    write_zpz(tmp_path / "m.zpz", tensors)
    assert _same(tmp_path / "m.zpz") == len(tensors)


def test_both_readers_agree_where_lines_and_bands_are_cut(tmp_path: Path) -> None:
    mask = pack_codes((torch.rand(1, 9 * 4001) > 0.99).to(torch.uint8), 1)[0]
    tensors = {
        "long": StoredTensor(torch.zeros(2, (1 << 20) + 7, dtype=torch.int8), Integers()),
        "mask": StoredTensor(mask, PackedCodes(1, 9 * 4001, width=4001)),
        "experts": StoredTensor(torch.zeros(2, 2048, 1024, dtype=torch.bool)),
    }
    write_zpz(tmp_path / "m.zpz", tensors)
    assert _same(tmp_path / "m.zpz") == 3


def test_both_know_the_same_types_and_words() -> None:
    assert tuple(reference.DTYPES) == bands.DTYPES
    assert reference.DICTIONARY == index.DICTIONARY


def test_both_readers_agree_on_the_artifact_of_a_chain(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "zoopress.pipeline.workbench.measure_latency", partial(measure_latency, seconds=0.01)
    )
    stages: dict[str, dict[str, Any]] = {
        "magnitude_pruning": {"sparsity": 0.5},
        "weight_quantization": {"bits": 4, "group_size": 32},
        "entropy_coding": {},
    }
    kinds = {name: plugins.technique(name) for name in stages}
    chain = [kind(kind.config_type(**stages[name])) for name, kind in kinds.items()]
    result = run_chain(chain, tiny_card("cnn", tmp_path), tmp_path / "out", plugins)
    path = result.artifact / "model.zpz"
    assert _same(path) > 3

    command = [sys.executable, "-m", "zoopress.coding.reference", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    with ZpzReader(path) as reader:
        for name, line in zip(reader.names(), lines, strict=True):
            digest = hashlib.sha256(b"".join(map(bytes, reader.pieces(name)))).hexdigest()
            assert line == f"{name} {reader.info(name)[0]} {list(reader.info(name)[1])} {digest}"


def test_the_plain_reader_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, zoopress.coding.reference; "
        "print(sorted({'numpy', 'torch', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
