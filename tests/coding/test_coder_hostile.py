"""Streams that no encoder wrote: refused with ValueError, or decoded to integers of the type."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from coder_planes import CODERS, DTYPES, Case, cases, decoded, gaussian, path
from zoopress.coding import adaptive_coder
from zoopress.coding.coder import Coder, decode_plane, encode_plane
from zoopress.coding.reference_coder import decode_plane as decode_plainly
from zoopress.coding.varint import varint

GUARD = 64


def outcome(stream: bytes, case: Case) -> NDArray[Any] | None:
    """Decode into guarded memory; return the integers, or None where the stream is refused."""
    plane = case.plane
    memory = np.full(plane.size + 2 * GUARD, 91, plane.dtype)
    try:
        decode_plane(
            stream, memory[GUARD : GUARD + plane.size].reshape(plane.shape), trellis=case.trellis
        )
        return memory[GUARD : GUARD + plane.size].copy()
    except ValueError:
        return None
    finally:
        assert (memory[:GUARD] == 91).all()
        assert (memory[GUARD + plane.size :] == 91).all()


def plain_outcome(stream: bytes, case: Case) -> list[int] | None:
    plane = case.plane
    try:
        return decode_plainly(
            stream,
            *plane.shape,
            bits=8 * plane.itemsize,
            signed=plane.dtype.kind == "i",
            trellis=case.trellis,
        )
    except ValueError:
        return None


def mutated(stream: bytes, generator: np.random.Generator) -> bytes:
    """Flip, set, cut, insert or remove a few bytes, more often near the start."""
    octets = bytearray(stream)
    for _ in range(int(generator.integers(1, 4))):
        if not octets:
            break
        size = len(octets)
        near = min(int(generator.geometric(0.05)), size) - 1
        place = near if generator.random() < 0.5 else int(generator.integers(size))
        change = generator.integers(5)
        if change == 0:
            octets[place] ^= 1 << int(generator.integers(8))
        elif change == 1:
            octets[place] = int(generator.choice([0, 1, 127, 128, 255]))
        elif change == 2:
            del octets[place:]
        elif change == 3:
            octets[place:place] = generator.bytes(int(generator.integers(1, 9)))
        else:
            del octets[place : place + int(generator.integers(1, 9))]
    return bytes(octets)


@pytest.mark.parametrize("coder", CODERS)
@settings(deadline=None, max_examples=40)
@given(case=cases(most=120), seed=st.integers(0, 2**32 - 1))
def test_both_decoders_judge_a_damaged_stream_alike(coder: Coder, case: Case, seed: int) -> None:
    stream = encode_plane(case.plane, trellis=case.trellis, coder=coder)
    generator = np.random.default_rng(seed)
    for _ in range(4):
        damaged = mutated(stream, generator)
        fast, plain = outcome(damaged, case), plain_outcome(damaged, case)
        assert (None if fast is None else fast.tolist()) == plain


@settings(deadline=None, max_examples=100)
@given(coder=st.integers(0, 6), rest=st.binary(max_size=80), case=cases(most=60))
def test_random_bytes_are_judged_alike(coder: int, rest: bytes, case: Case) -> None:
    fast, plain = (f(bytes((coder,)) + rest, case) for f in (outcome, plain_outcome))
    assert (None if fast is None else fast.tolist()) == plain


def sound(coder: Coder) -> tuple[bytes, Case]:
    case = Case(gaussian(40, 500, 1.0))
    return encode_plane(case.plane, coder=coder), case


@pytest.mark.parametrize("coder", ["static", "huffman"])
def test_every_truncation_is_refused(coder: Coder) -> None:
    stream, case = sound(coder)
    for size in [*range(60), *range(60, len(stream), 37), len(stream) - 1]:
        assert outcome(stream[:size], case) is None


def test_what_the_adaptive_coder_accepts_is_what_it_would_write() -> None:
    # What is left of an arithmetic code is the start of some plane's; few planes end there.
    stream, case = sound("adaptive")
    accepted = 0
    for size in range(4, 200):
        integers = outcome(stream[:size], case)
        if integers is not None:
            accepted += 1
            plane = integers.reshape(case.plane.shape).astype(np.int32)
            assert adaptive_coder.encode(plane, 0, trellis=False) == stream[1:size]
    assert accepted < 60


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("tail", [b"\0", b"\1", b"\0\0\0\0", b"\0\0\0\1", b"\xff" * 8])
def test_bytes_that_follow_are_refused(coder: Coder, tail: bytes) -> None:
    stream, case = sound(coder)
    assert outcome(stream + tail, case) is None


@pytest.mark.parametrize("coder", CODERS)
def test_a_plane_of_another_size_is_refused(coder: Coder) -> None:
    stream, _ = sound(coder)
    for shape in ((40, 499), (41, 500), (39, 500), (1, 1)):
        assert outcome(stream, Case(np.zeros(shape, np.int8))) is None


@pytest.mark.parametrize("coder", CODERS)
def test_integers_beyond_the_type_are_refused(coder: Coder) -> None:
    stream = encode_plane(gaussian(50, 50, 100.0, "int16"), coder=coder)
    with pytest.raises(ValueError, match=r"beyond int8"):
        decode_plane(stream, np.zeros((50, 50), np.int8))


@pytest.mark.parametrize("coder", CODERS)
def test_a_center_is_no_part_of_a_trellis(coder: Coder) -> None:
    stream = encode_plane(gaussian(50, 50, 3.0, "uint8"), coder=coder)
    assert outcome(stream, Case(np.zeros((50, 50), np.uint8))) is not None
    assert outcome(stream, Case(np.zeros((50, 50), np.int16), trellis=True)) is None


@pytest.mark.parametrize("stream", [b"", b"\0", b"\0\3\1", b"\0\2\1\1", b"\1", b"\5\0", b"\1\0\0"])
def test_frames_that_say_nothing_are_refused(stream: bytes) -> None:
    assert outcome(stream, Case(np.zeros((1, 1), np.int8))) is None


def test_a_constant_beyond_the_type_is_refused() -> None:
    assert outcome(b"\1" + varint(600), Case(np.zeros((2, 2), np.int8))) is None


@pytest.mark.parametrize("coder", CODERS)
def test_memory_follows_the_plane_and_the_stream(coder: Coder) -> None:
    stream, case = sound(coder)
    decoded(stream, case)  # compiled now
    generator = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for _ in range(100):
            outcome(mutated(stream, generator), case)
        # Look-ups and predictions have sizes of their own, whatever the stream says.
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("coder", CODERS)
def test_a_hundred_thousand_damaged_streams_do_no_harm(coder: Coder) -> None:
    generator = np.random.default_rng(7)
    sounds = []
    for dtype in DTYPES:
        for shape in ((1, 40), (5, 31), (40, 3), (9, 90), (32, 100)):
            for deviation in (0.3, 3.0, 300.0, 1e6):
                case = Case(gaussian(*shape, deviation, dtype))
                sounds.append((encode_plane(case.plane, coder=coder), case))
                if dtype != "uint8":
                    case = Case(path(case.plane, dtype), trellis=True)
                    stream = encode_plane(case.plane, trellis=True, coder=coder)
                    sounds.append((stream, case))
    for _ in range(100_000):
        stream, case = sounds[generator.integers(len(sounds))]
        outcome(mutated(stream, generator), case)
