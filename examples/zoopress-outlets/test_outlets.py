"""The runtime, the exporter and the coder keep the rules of zoopress, and do what they are for."""

import lzma

import numpy as np
import pytest
from zoopress_outlets.lzma_coder import Lzma
from zoopress_outlets.numpy_arrays import FILE

from zoopress.coding.planes import measure
from zoopress.exporters import export
from zoopress.plugins import load_plugins
from zoopress.testing import (
    check_entropy_coder,
    check_exporter,
    check_runtime,
    tiny_artifact,
)


def test_the_runtime_conforms():
    check_runtime("exported_program", models=("cnn",))


def test_the_exporter_conforms():
    check_exporter("numpy")


def test_the_entropy_coder_conforms():
    check_entropy_coder("lzma")


def test_rows_that_repeat_take_few_bytes():
    row = np.random.default_rng(0).integers(-99, 99, (1, 500))
    plane = np.repeat(row, 100, 0).astype(np.int32)
    assert len(Lzma().encode(plane, measure(plane, False), False)) < 1500


def test_a_stream_that_unpacks_to_more_than_its_plane_is_refused():
    stream = Lzma().encode(*_plane_of(np.arange(4096) % 3))
    with pytest.raises(ValueError, match="instead of 4"):
        Lzma().decode(stream, np.zeros((2, 2), np.int32), False)


def test_what_is_no_lzma_is_refused():
    with pytest.raises(ValueError, match="no LZMA2") as caught:
        Lzma().decode(b"\1\x99junk", np.zeros((2, 2), np.int32), False)
    assert isinstance(caught.value.__cause__, lzma.LZMAError)


def test_packed_weights_are_written_as_the_integers_that_they_are(tmp_path):
    plugins = load_plugins()
    export("numpy", tiny_artifact("cnn", tmp_path, plugins), tmp_path / "out", plugins)
    with np.load(tmp_path / "out" / FILE) as arrays:
        codes = [name for name in arrays.files if name.endswith(".codes")]
        assert codes
        assert all(arrays[name].itemsize == 1 for name in codes)


def _plane_of(numbers):
    plane = numbers.reshape(1, -1).astype(np.int32)
    return plane, measure(plane, False), False
