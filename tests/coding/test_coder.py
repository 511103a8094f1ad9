from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from coder_planes import CODERS, DTYPES, Case, cases, decoded, gaussian, path, plainly_decoded
from zoopress.coding import coder as module
from zoopress.coding.built_in import ADAPTIVE
from zoopress.coding.coder import Coder, decode_plane, encode_plane, estimate_bits
from zoopress.coding.trellis import NEXT, ODD

PAGE = Path(__file__).parents[2] / "docs" / "zpz.md"


def entropy_bits(plane: NDArray[Any]) -> float:
    counts = np.unique(plane, return_counts=True)[1]
    return float(-(counts * np.log2(counts / plane.size)).sum())


def check(case: Case, coder: Coder) -> bytes:
    stream = encode_plane(case.plane, trellis=case.trellis, coder=coder)
    assert np.array_equal(decoded(stream, case), case.plane)
    assert np.array_equal(plainly_decoded(stream, case), case.plane)
    return stream


@pytest.mark.parametrize("coder", [*CODERS, "auto"])
@settings(deadline=None, max_examples=40)
@given(case=cases(most=250))
def test_both_decoders_give_back_any_plane(coder: Coder, case: Case) -> None:
    check(case, coder)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 900), (900, 1), (3, 301)])
def test_single_lines_and_columns_come_back(
    coder: Coder, dtype: str, shape: tuple[int, int]
) -> None:
    check(Case(gaussian(*shape, 2.0, dtype)), coder)


@pytest.mark.parametrize("coder", CODERS)
def test_the_widest_and_the_tallest_plane_come_back(coder: Coder) -> None:
    for shape in ((1, 1 << 20), (1 << 20, 1)):
        case = Case(gaussian(*shape, 0.4))
        stream = encode_plane(case.plane, coder=coder)
        assert np.array_equal(decoded(stream, case), case.plane)


@pytest.mark.parametrize("coder", CODERS)
def test_the_extremes_of_int32_come_back(coder: Coder) -> None:
    plane = np.zeros((30, 40), np.int32)
    plane[3, 5:9], plane[7, 1:3] = -(1 << 31), (1 << 31) - 1
    stream = check(Case(plane), coder)
    assert stream[0] == 2 + CODERS.index(coder)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 65])
def test_paths_of_the_trellis_come_back_with_any_number_of_lines(coder: Coder, rows: int) -> None:
    columns = (20_000 if coder == "static" else 500) // rows  # from 16,384 on there are lanes
    indices = np.random.default_rng(rows).normal(0, 2, (rows, columns)).astype(np.int64)
    check(Case(path(indices, "int8"), trellis=True), coder)


@pytest.mark.parametrize("shape", [(1, 70_001), (3, 23_333), (16, 2000), (21, 1601), (6000, 3)])
def test_lanes_of_any_shape_come_back(shape: tuple[int, int]) -> None:
    check(Case(gaussian(*shape, 2.0)), "static")


@pytest.mark.parametrize("coder", [*CODERS, "auto"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_empty_planes_take_two_bytes(coder: Coder, shape: tuple[int, int]) -> None:
    assert len(check(Case(np.zeros(shape, np.int16)), coder)) == 2


@pytest.mark.parametrize("value", [0, 7, -1, -128])
def test_one_value_takes_a_varint(value: int) -> None:
    assert len(check(Case(np.full((300, 70), value, np.int8)), "auto")) == 2 + (value == -128)


def test_zeros_of_a_trellis_take_two_bytes() -> None:
    assert len(check(Case(np.zeros((50, 60), np.int8), trellis=True), "auto")) == 2


@pytest.mark.parametrize("coder", [*CODERS, "auto"])
@pytest.mark.parametrize(("dtype", "width"), [("int8", 1), ("int16", 1), ("int32", 2)])
def test_noise_takes_no_more_than_its_bytes(coder: Coder, dtype: str, width: int) -> None:
    low, high = (-128, 127) if width == 1 else (-32768, 32767)
    plane = np.random.default_rng(0).integers(low, high, (64, 500), endpoint=True).astype(dtype)
    assert len(check(Case(plane), coder)) <= width * plane.size + 2


@pytest.mark.parametrize("coder", CODERS)
def test_lines_that_do_not_lie_together_come_back(coder: Coder) -> None:
    plane = gaussian(60, 40, 2.0)[::2, ::-1].T
    stream = encode_plane(plane, coder=coder)
    out = np.zeros((80, 60), np.int8)[::2, ::2]
    decode_plane(stream, out)
    assert np.array_equal(out, plane)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0, 12.0])
def test_large_planes_come_within_half_a_percent_of_their_entropy(deviation: float) -> None:
    plane = gaussian(512, 512, deviation)
    assert 8 * len(encode_plane(plane, coder="static")) < 1.005 * entropy_bits(plane) + 1600


@pytest.mark.parametrize("coder", ["static", "adaptive"])
@pytest.mark.parametrize("axis", [0, 1])
def test_lines_of_different_variance_are_exploited(coder: Coder, axis: int) -> None:
    generator = np.random.default_rng(1)
    size = 300
    shape = (size, 1) if axis == 0 else (1, size)
    deviations = np.exp(generator.normal(0, 1, shape)) * 2
    plane = np.rint(generator.normal(0, 1, (size, size)) * deviations).clip(-127, 127)
    assert 8 * len(encode_plane(plane.astype(np.int8), coder=coder)) < 0.93 * entropy_bits(plane)


def test_empty_rows_and_columns_of_a_sparse_plane_are_exploited() -> None:
    generator = np.random.default_rng(2)
    plane = np.rint(generator.normal(0, 3, (300, 400))) * (generator.random((300, 400)) < 0.1)
    plane *= (generator.random((300, 1)) < 0.4) & (generator.random((1, 400)) < 0.4)
    integers = plane.astype(np.int8)
    assert 8 * len(encode_plane(integers, coder="adaptive")) < 0.87 * entropy_bits(integers)
    assert encode_plane(integers)[0] == ADAPTIVE


def test_huffman_codes_are_within_a_percent_of_optimal_lengths() -> None:
    # Kraft and dyadic: probabilities 1/2, 1/4, 1/8, 1/8 have codes of exactly 1, 2, 3 and 3 bits.
    plane = np.array([0] * 4 + [1] * 2 + [2, -1], np.int8).repeat(1000).reshape(80, 100)
    plane = np.random.default_rng(0).permuted(plane.reshape(-1)).reshape(80, 100)
    stream = encode_plane(plane, coder="huffman")
    assert len(stream) == 8000 * 14 // 8 // 8 + 8


def test_the_state_of_the_trellis_is_exploited() -> None:
    generator = np.random.default_rng(3)
    indices = generator.normal(0, 0.6, (200, 300)).round().astype(np.int64)
    plane = path(indices, "int8")
    bits = 8 * len(encode_plane(plane, trellis=True))
    assert bits < 1.02 * entropy_bits(indices) < 0.9 * entropy_bits(plane)


@settings(deadline=None, max_examples=15)
@given(
    rows=st.integers(20, 260),
    deviation=st.floats(0.2, 20),
    density=st.sampled_from((0.02, 0.3, 1.0)),
    seed=st.integers(0, 1000),
)
def test_the_estimate_is_good_to_two_percent(
    rows: int, deviation: float, density: float, seed: int
) -> None:
    plane = gaussian(rows, 256, deviation, "int16", seed)
    plane[np.random.default_rng(seed).random(plane.shape) > density] = 0
    bits = 8 * len(encode_plane(plane))
    assert abs(estimate_bits(plane) - bits) <= 0.02 * bits + 64


def test_auto_is_about_the_smallest() -> None:
    for deviation in (0.1, 0.5, 3.0):
        plane = gaussian(120, 200, deviation)
        sizes = [len(encode_plane(plane, coder=coder)) for coder in CODERS]
        assert len(encode_plane(plane)) == min(sizes)


def test_the_estimate_refuses_what_the_coder_refuses() -> None:
    for function in (encode_plane, estimate_bits):
        with pytest.raises(ValueError, match="trellis"):
            function(np.array([[1, 1]], np.int8), trellis=True)
        with pytest.raises(ValueError, match=r"float32 \[1, 1\]"):
            function(np.zeros((1, 1), np.float32))
        with pytest.raises(ValueError, match=r"int8 \[3\]"):
            function(np.zeros(3, np.int8))


def test_an_unknown_coder_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'zip'; use auto, static, adaptive or huffman"):
        encode_plane(gaussian(9, 9, 1.0), coder="zip")  # type: ignore[arg-type]


EXAMPLES = {
    "00 01 01 FE": [[1, -2]],
    "01 0E": [[7, 7], [7, 7]],
    "04 08 01 02 00 01 01 01 11 04 B3 7A": [[0, 1, 0, -1, 0, 0, 1, 0, 0, 0, 1] + [0] * 13],
    "02 01 05 03 33 99 08 08 00 05 00 00 00 91 C0 01 00 9E 5A 4D 77 03 00 00": (
        [[0] * 4 + [5] + [0] * 11] * 2
    ),
    "03 00 D3 54": [[0] * 8 + [1] + [0] * 7],
}
"""The examples of the page, worked there by hand."""


@pytest.mark.parametrize(("octets", "integers"), EXAMPLES.items())
def test_the_examples_of_the_page_hold(octets: str, integers: list[list[int]]) -> None:
    case = Case(np.array(integers, np.int8))
    stream = bytes.fromhex(octets)
    assert np.array_equal(decoded(stream, case), case.plane)
    assert np.array_equal(plainly_decoded(stream, case), case.plane)
    name = {2: "static", 3: "adaptive", 4: "huffman"}.get(stream[0])
    if name:
        assert encode_plane(case.plane, coder=name) == stream  # type: ignore[arg-type]


def test_the_page_prints_the_trellis() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for title, expected in (
        (r"next, \*k\* even", [even for even, _ in NEXT]),
        (r"next, \*k\* odd", [odd for _, odd in NEXT]),
        ("odd", ODD),
    ):
        row = re.search(rf"^\| {title} \| (.*) \|$", text, re.MULTILINE)
        assert row is not None
        assert [int(cell) for cell in row[1].split("|")] == list(expected)


def test_kernels_run_without_a_place_for_their_cache() -> None:
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from zoopress.coding.frequency_tables import put_bits\n"
        "import numpy as np\n"
        "assert put_bits(np.zeros(4, np.uint8), 3, 5, 3) == 6\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_torch_is_not_needed() -> None:
    code = f"import sys, {module.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
