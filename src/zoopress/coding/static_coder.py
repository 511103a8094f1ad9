"""Interleaved rANS with static tables, one for each class of predicted magnitude.

Source: Duda 2013, arXiv:1311.2540 (asymmetric numeral systems); Giesen 2014, arXiv:1402.3392
(interleaved coders).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.alphabet import read_alphabet
from zoopress.coding.frequency_tables import SLOTS, get_tables
from zoopress.coding.planes import TRELLIS_NEXT, TRELLIS_ODD, Plane
from zoopress.coding.static_kernels import (
    ENDS_EARLY,
    FINE,
    LEVELS,
    STATE_LOW,
    decode_static,
    encode_static,
)
from zoopress.coding.static_model import MAX_CLASSES, Context, Model, cut_for_lanes
from zoopress.coding.varint import Buffer

MAX_LANES = 16
Narrow: TypeAlias = Plane | NDArray[np.int8] | NDArray[np.uint8]
_NO_PLANE = np.empty((0, 0), np.int32)
_NO_OCTETS = np.empty((0, 0), np.uint8)


def encode(plane: Plane, model: Model, trellis: bool) -> bytes:
    """Code a plane of int32 as its model says; all but the byte that names the coder."""
    sets = model.scan.histogram.shape[0]
    table_of_bin = np.zeros(256, np.uint8)
    for number, (a, b) in enumerate(zip([0, *model.ends[:-1]], model.ends, strict=True)):
        for chosen in range(sets):
            table_of_bin[128 * chosen + a : 128 * chosen + b] = number * sets + chosen
    frequencies = model.frequencies
    starts = frequencies.cumsum(axis=1) - frequencies

    states = np.full(model.lanes, STATE_LOW, np.int64)
    words = np.empty(2 * plane.size + 64, np.uint32)
    position, done = words.size, plane.size
    for part in reversed(cut_for_lanes(plane, model.lanes, trellis)):
        done -= part.size
        position = encode_static(
            part,
            trellis,
            model.lanes,
            model.alphabet.center,
            model.alphabet.exact,
            model.scan.tokens[done:],
            model.scan.bins[done:],
            table_of_bin,
            starts,
            frequencies,
            states,
            words,
            position,
        )
    return b"".join(
        (
            bytes((model.lanes, *model.scan.context)),
            model.alphabet.to_bytes(),
            bytes((len(model.ends) - 1,)),
            np.array(model.thresholds, "<u2").tobytes(),
            model.tables,
            states.astype("<u8").tobytes(),
            words[position:].astype("<u4", copy=False).tobytes(),
        )
    )


def decode(stream: Buffer, plane: Narrow, trellis: bool) -> None:
    """Fill a contiguous plane that isn't empty from what `encode` wrote.

    Raises:
        ValueError: if the stream is none of such a plane.
    """
    if len(stream) < 6:
        raise ValueError("The stream ends within its parameters.")
    lanes, context = stream[0], Context(*stream[1:6])
    if not 1 <= lanes <= MAX_LANES or max(context[:2]) > 15 or context.shift > 40:
        raise ValueError("The stream's parameters are impossible.")
    alphabet, position = read_alphabet(stream, 6)
    values, extra_bits = alphabet.tables
    alphabet.check(trellis)
    if len(stream) < position + 1:
        raise ValueError("The stream ends before its classes.")
    classes = stream[position] + 1
    position += 1
    if classes > MAX_CLASSES or len(stream) < position + 2 * (classes - 1):
        raise ValueError("The stream has too many classes or ends within them.")
    thresholds = np.frombuffer(stream, "<u2", classes - 1, position).astype(np.int64)
    position += 2 * (classes - 1)
    if (np.diff(thresholds, prepend=0, append=LEVELS) <= 0).any():
        raise ValueError("The thresholds between classes do not rise.")
    class_of_level = np.searchsorted(thresholds, np.arange(LEVELS), side="right").astype(np.uint8)
    tables = classes * 2 if trellis else classes
    entries = np.empty(tables * SLOTS, np.uint32)
    octets = np.frombuffer(stream, np.uint8, offset=position).copy()  # compiled for writable ones
    size = get_tables(octets, tables, alphabet.size, entries)
    if size < 0:
        raise ValueError("The stream's frequency tables are impossible or end early.")
    position += size
    words_at = position + 8 * lanes
    if words_at > len(stream) or (len(stream) - words_at) % 4:
        raise ValueError("The stream ends within a lane's state or a word.")
    states = np.frombuffer(stream, "<u8", lanes, position).astype(np.int64)
    if (states < STATE_LOW).any():
        raise ValueError("A lane starts from an impossible state.")
    words = np.frombuffer(stream, "<u4", offset=words_at).astype(np.uint32)
    position = 0
    limits = np.iinfo(plane.dtype)
    for part in cut_for_lanes(plane, lanes, trellis):
        wide = part.dtype == np.int32
        result, position = decode_static(
            part if wide else _NO_PLANE,
            _NO_OCTETS if wide else part.view(np.uint8),
            limits.min,
            limits.max,
            trellis,
            TRELLIS_NEXT,
            TRELLIS_ODD,
            lanes,
            *context,
            alphabet.center,
            alphabet.magnitudes,
            values,
            extra_bits,
            class_of_level,
            entries,
            states,
            words,
            position,
        )
        if result == ENDS_EARLY:
            raise ValueError("The stream ends before its last symbol.")
        if result != FINE:
            raise ValueError(f"The stream holds a number beyond {plane.dtype}.")
    if position != words.size or (states != STATE_LOW).any():
        raise ValueError("The stream does not end where its last symbol does.")
