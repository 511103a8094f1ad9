from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoopress.coding import rans
from zoopress.coding.rans import Bytes


def _entropy_bits(symbols: Bytes) -> float:
    counts = rans.byte_histogram(symbols)
    share = counts[counts > 0] / symbols.size
    return float(-(share * np.log2(share)).sum() * symbols.size)


def _gaussian(count: int, deviation: float, size: int, seed: int = 0) -> Bytes:
    values = np.random.default_rng(seed).normal(size / 2, deviation, count)
    return np.clip(np.rint(values), 0, size - 1).astype(np.uint8)


@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_come_back(data: bytes) -> None:
    symbols = np.frombuffer(data, np.uint8)
    assert rans.decode(rans.encode(symbols), symbols.size).tobytes() == data


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 20_000),
    st.integers(2, 256),
    st.floats(0.01, 8.0),
    st.integers(0, 2**32 - 1),
)
def test_skewed_alphabets_come_back(count: int, size: int, skew: float, seed: int) -> None:
    uniform = np.random.default_rng(seed).random(count)
    symbols = (uniform**skew * size).astype(np.uint8)
    assert np.array_equal(rans.decode(rans.encode(symbols), count), symbols)


@pytest.mark.parametrize("count", [4095, 4096, 4097, 100_003, 1 << 20])
def test_lanes_of_unequal_length_come_back(count: int) -> None:
    symbols = _gaussian(count, 20, 256)
    assert np.array_equal(rans.decode(rans.encode(symbols), count), symbols)


@pytest.mark.parametrize("count", [10_000, 1 << 20])
def test_a_symbol_that_occurs_once_among_zeros_comes_back(count: int) -> None:
    symbols = np.zeros(count, np.uint8)
    symbols[count // 3] = 255
    stream = rans.encode(symbols)
    assert np.array_equal(rans.decode(stream, count), symbols)
    assert len(stream) < count / 200


@pytest.mark.parametrize(("deviation", "size"), [(0.7, 4), (2.5, 16), (30, 256), (1e9, 256)])
def test_large_inputs_come_within_half_a_percent_of_their_entropy(
    deviation: float, size: int
) -> None:
    symbols = _gaussian(1 << 20, deviation, size)
    # The lanes' states cost what they cost, however few bits a symbol has.
    assert 8 * len(rans.encode(symbols)) <= 1.005 * _entropy_bits(symbols) + 0.012 * symbols.size


def test_one_repeated_symbol_takes_two_bytes() -> None:
    assert len(rans.encode(np.full(1_000_000, 7, np.uint8))) == 2


def test_a_small_alphabet_has_a_small_table() -> None:
    symbols = np.random.default_rng(0).choice(4, 4000, p=[0.1, 0.5, 0.3, 0.1]).astype(np.uint8)
    table = rans.build_table(rans.byte_histogram(symbols))
    assert len(table.serialised) <= 8


def test_tables_sum_to_their_precision_and_survive_their_serialisation() -> None:
    generator = np.random.default_rng(1)
    for present in (2, 3, 16, 100, 255, 256):
        for scale in (1, 10, 10_000):
            histogram = np.zeros(256, np.int64)
            where = generator.choice(256, present, replace=False)
            histogram[where] = generator.geometric(1 / scale, present)
            table = rans.build_table(histogram)
            parsed, end = rans.parse_table(table.serialised)
            assert end == len(table.serialised)
            assert np.array_equal(parsed.frequencies, table.frequencies)
            assert table.frequencies.sum() == 1 << table.precision
            assert np.array_equal(table.frequencies > 0, histogram > 0)


def test_the_estimated_size_is_close_to_the_real_one() -> None:
    for count in (100, 5000, 300_000):
        symbols = _gaussian(count, 12, 256)
        real = len(rans.encode(symbols))
        assert abs(rans.estimate_size(rans.byte_histogram(symbols)) - real) <= 4 + real / 500


def test_every_prefix_is_refused() -> None:
    symbols = _gaussian(6000, 3, 16)
    stream = rans.encode(symbols)
    for size in [*range(200), *range(200, len(stream), 37), len(stream) - 1]:
        with pytest.raises(ValueError, match=r"\."):
            rans.decode(stream[:size], symbols.size)


def test_trailing_bytes_are_refused() -> None:
    for symbols in (_gaussian(500, 3, 16), np.zeros(500, np.uint8)):
        for tail in (b"\0", b"\0\0"):
            with pytest.raises(ValueError, match=r"follow|within|damaged"):
                rans.decode(rans.encode(symbols) + tail, 500)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(1, 3000))
def test_random_streams_give_an_error_or_the_declared_count(stream: bytes, count: int) -> None:
    with contextlib.suppress(ValueError):
        assert rans.decode(stream, count).size == count


def test_flipped_bits_give_an_error_or_the_declared_count() -> None:
    symbols = _gaussian(400, 3, 16)
    stream = rans.encode(symbols)
    refused = 0
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert rans.decode(bytes(damaged), 400).size == 400
        except ValueError:
            refused += 1
    # A lane may fall back into step after a wrong symbol; the container's checksum sees the rest.
    assert refused > 0.95 * 8 * len(stream)


def test_impossible_lane_counts_are_refused() -> None:
    table = rans.build_table(rans.byte_histogram(_gaussian(400, 3, 16))).serialised
    for lanes in (0, 401, rans.MAX_LANES + 1, 2**62):
        with pytest.raises(ValueError, match="lanes"):
            rans.decode(table + rans.varint(lanes) + bytes(64), 400)


def test_an_empty_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no symbols"):
        rans.encode(np.empty(0, np.uint8))
    with pytest.raises(ValueError, match="at least one"):
        rans.decode(b"\0\0", 0)


@given(st.integers(0, 2**63 - 1))
def test_varints_come_back(value: int) -> None:
    written = rans.varint(value)
    assert rans.read_varint(written, 0) == (value, len(written))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x01"])
def test_bad_varints_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="integer"):
        rans.read_varint(data, 0)


def test_importing_the_coder_does_not_import_torch() -> None:
    code = "import sys, zoopress.coding.zpz, zoopress.coding.rans; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
