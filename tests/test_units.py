"""Sizes, durations and numbers as people write and read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from zoopress.units import parse_bytes, show_bytes, show_number, show_seconds


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


@pytest.mark.parametrize(
    ("value", "figures", "shown"),
    [
        (1030.4, 3, "1,030"),
        (999.7, 3, "1,000"),
        (99.96, 3, "100"),
        (0.0, 3, "0"),
        (0.01234, 3, "0.0123"),
        (12.0, 3, "12"),
        (-1034.2, 2, "-1,034"),
        (1e-5, 3, "0.00001"),
        (3.21e-9, 2, "3.2 × 10⁻⁹"),
        (2.5e16, 3, "2.5 × 10¹⁶"),
    ],
)
def test_a_number_reads_well(value: float, figures: int, shown: str) -> None:
    assert show_number(value, figures) == shown


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_no_number_has_an_exponent_of_a_machine(value: float, figures: int) -> None:
    shown = show_number(value, figures)
    assert "e" not in shown
    plain = (
        shown.replace(",", "")
        .replace(" × 10", "e")
        .translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    )
    assert math.isclose(float(plain), value, rel_tol=0.51 * 10.0 ** (1 - figures), abs_tol=1e-300)
