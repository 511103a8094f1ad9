"""Patterns of names: short, exact, and harmless whoever wrote them."""

import pytest
from hypothesis import example, given, strategies as st

from zoopress.artifacts.names import expand, to_pattern

MANY = (1 << 18, 1 << 24)

PARTS = st.text(alphabet="ab019{},\\", max_size=4) | st.integers(0, 12).map(str)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@given(names=st.lists(NAMES, min_size=1, max_size=12))
@example(names=["", "", "a", "a.b", ".", "..", "a."])
@example(names=["{0..3}", "0", "1", "2", "01", "02"])
@example(names=[".".join("a" * 200), ".".join("a" * 199 + "b")])
def test_names_come_back_in_their_order(names: list[str]) -> None:
    assert expand(to_pattern(names), *MANY) == names


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["a.b"], "a.b"),
        ([""], ""),
        (["a.x", "a.y", "b.x", "b.y"], "{a,b}.{x,y}"),
        (["0.w", "1.w", "2.w", "4.w"], "{{0..2},4}.w"),
        (["0.w", "1.w", "2.w"], "{0..2}.w"),
        (["8.w", "9.w", "10.w"], "{8..10}.w"),
        (["2.w", "1.w", "0.w"], "{2,1,0}.w"),
        (["a", "a.b", "a.c"], "a{,.{b,c}}"),
        (["a{b", "a,b"], "{a\\{b,a\\,b}"),
        (["a.x.w", "b.w"], "{a.x,b}.w"),
    ],
)
def test_patterns_by_hand(names: list[str], pattern: str) -> None:
    assert expand(pattern, *MANY) == names
    written = to_pattern(names)
    assert len(written) <= len(pattern)
    assert expand(written, *MANY) == names


def test_the_layers_of_a_model_are_one_short_pattern() -> None:
    names = [
        f"encoder.layer.{layer}.{part}.weight"
        for layer in range(96)
        for part in ("query", "key", "value", "output.dense")
    ]
    assert to_pattern(names) == ("encoder.layer.{0..95}.{{query,key,value},output.dense}.weight")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{a,b", "not closed"),
        ("{", "not closed"),
        ("a}", "outside of braces"),
        ("a,b", "outside of braces"),
        ("{a}", "one alternative"),
        ("{}", "one alternative"),
        ("a\\", "backslash"),
        ("\\a", "backslash"),
        ("{3..3}", "does not rise"),
        ("{3..1}", "does not rise"),
        ("{0..999999999}", "more than"),
        ("{0..9}" * 7, "more than"),
        ("{0..9}" * 100_000, "more than"),
        ("{a,b}" * 200_000, "more than"),
        ("{a," * 30 + "b" + "}" * 30 + "{0..99999}", "more than"),
        ("{" * 100_000, "more than|too deep"),
        ("{a," * 100 + "b" + "}" * 100, "too deep"),
        ("{0..99999}" + "x" * 1000, "more than"),
    ],
)
def test_a_pattern_that_is_none_or_stands_for_too_much_is_refused(
    pattern: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expand(pattern, 100_000, 10_000_000)


@given(text=st.text(alphabet="ab0129{},.\\", max_size=30))
def test_any_text_is_refused_or_stands_for_what_it_may(text: str) -> None:
    try:
        names = expand(text, 50, 500)
    except ValueError as error:
        assert repr(text)[:20] in str(error)  # noqa: PT017
    else:
        assert len(names) <= 50
        assert sum(map(len, names)) <= 500


def test_no_names_are_no_pattern() -> None:
    with pytest.raises(ValueError, match="no names"):
        to_pattern([])
