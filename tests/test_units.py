"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from zoopress.units import parse_bytes, show_bytes, show_seconds


@given(st.integers(1, 10**14))
def test_a_size_that_was_shown_is_read_as_about_the_same(count: int) -> None:
    shown = show_bytes(count).replace("bytes", "B")
    assert parse_bytes(shown) == pytest.approx(count, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min")],
)
def test_durations_are_shown_in_the_units_people_use(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown
