"""Scopes: what is sure of two of them is true of every name."""

from typing import Any

from hypothesis import assume, example, given, strategies as st

from zoopress.techniques import EVERYTHING, Scope, weights_below

NAMES = st.text("ab.1", min_size=1, max_size=5)
PATTERNS = st.one_of(
    st.sampled_from(["*", "a.*", "a.b.*", "*.b", "b.*", "?.a", "[ab].1", "a]b", "a[!b]*"]),
    st.text("ab.1*?", min_size=1, max_size=4),
)
SCOPES = st.builds(
    Scope,
    st.one_of(st.none(), st.sets(st.sampled_from(["linear", "conv"]), min_size=1).map(tuple)),
    st.lists(PATTERNS, min_size=1, max_size=2).map(tuple),
    st.lists(PATTERNS, max_size=2).map(tuple),
)


@given(SCOPES, SCOPES, st.lists(NAMES, min_size=8, max_size=30))
@example(Scope(None, ("*b]",)), Scope(None, ("x[ab]",)), ["xa", "xb"])
@example(Scope(None, ("a*",), ("ab*",)), Scope(None, ("a.*",)), ["a.1", "ab"])
def test_what_is_sure_of_two_scopes_holds_for_every_name(
    one: Scope, other: Scope, names: list[str]
) -> None:
    for kind in ("linear", "conv"):
        for name in names:
            in_both = one.has(kind, name) and other.has(kind, name)
            if one.surely_misses(other):
                assert not in_both
            # Kinds are the properties' concern.
            if one.surely_covers(other) and Scope(None, other.include, other.exclude).has(
                kind, name
            ):
                assert Scope(None, one.include, one.exclude).has(kind, name)


@given(SCOPES)
def test_a_scope_covers_itself_and_everything_covers_it(scope: Scope) -> None:
    assert scope.surely_covers(scope)
    assert EVERYTHING.surely_covers(scope)
    assume(scope != EVERYTHING)
    assert str(scope) != str(EVERYTHING)


def both(include: Any, exclude: Any = ()) -> Scope:
    return Scope(("linear",), tuple(include), tuple(exclude))


def test_what_people_write_is_told_apart() -> None:
    encoder, decoder = both(["encoder.*"]), both(["decoder.*"])
    assert encoder.surely_misses(decoder)
    assert both(["*"]).surely_covers(encoder)
    assert not encoder.surely_covers(both(["*"]))
    assert both(["*"], ["encoder.*"]).surely_misses(encoder)
    assert both(["*"], ["head.*"]).surely_covers(encoder)
    assert not both(["*"], ["encoder.0.*"]).surely_covers(encoder)
    assert both(["*.weight"]).surely_misses(both(["*.bias"]))
    assert not both(["*.0.*"]).surely_misses(encoder)
    assert Scope(("conv",)).surely_misses(Scope(("linear",)))


def test_a_modules_pattern_stands_for_its_weights() -> None:
    scope = weights_below(["encoder.0", "head*"], ["encoder.0.norm"])
    assert scope.has("linear", "encoder.0.weight")
    assert scope.has("linear", "head.weight")
    assert not scope.has("vector", "encoder.0.norm.weight")
    assert not scope.has("linear", "encoder.01.weight")
