"""Stages that recipes share: each is computed once, after all that it needs."""

from __future__ import annotations

from hypothesis import given, strategies as st

from zoopress.orchestration.prefixes import Shared, shared_prefixes

chains = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=8)


def keys_of(chain: list[str]) -> tuple[str, ...]:
    """Return keys as cells have them: each says all that came before."""
    return tuple("".join(chain[: i + 1]) for i in range(len(chain)))


def compute(shared: Shared[int], keys: dict[int, tuple[str, ...]], done: list[str]) -> None:
    """Do what a run does: a shared part first, then whatever hangs on it."""
    for cell in shared.cells:
        for key in keys[cell]:
            if key not in done:
                done.append(key)
    for part in shared.longer:
        cells = part.all_cells()
        if part.missing:
            for key in keys[cells[0]][: part.count]:
                if key not in done:
                    done.append(key)
        compute(part, keys, done)


@given(chains, st.sets(st.integers(0, 30)))
def test_every_cell_is_reached_once_and_no_key_is_anybodys_alone_that_others_need(
    given_chains: list[list[str]], some: set[int]
) -> None:
    keys = {i: keys_of(chain) for i, chain in enumerate(given_chains)}
    every = sorted({key for chain in keys.values() for key in chain})
    missing = {key for i, key in enumerate(every) if i not in some}
    tree = shared_prefixes(keys, missing)
    assert sorted(tree.all_cells()) == sorted(keys)

    # What two cells compute at the same time, beyond what was shared before, never overlaps.
    def alone(node: Shared[int]) -> None:
        branches = [set(keys[cell][node.count :]) for cell in node.cells]
        branches += [set(keys[p.all_cells()[0]][node.count : p.count]) for p in node.longer]
        for i, one in enumerate(branches):
            for other in branches[i + 1 :]:
                assert not one & other
        for part in node.longer:
            shared = {keys[cell][: part.count] for cell in part.all_cells()}
            assert len(shared) == 1
            assert part.missing == bool(missing & set(shared.pop()[node.count :]))
            alone(part)

    alone(tree)
    done: list[str] = []
    compute(tree, keys, done)
    assert sorted(done) == every


def test_recipes_that_part_after_two_stages_share_those() -> None:
    keys = {"one": ("a", "ab", "abc"), "two": ("a", "ab", "abd"), "three": ("x",)}
    tree = shared_prefixes(keys, {"a", "ab", "abc", "abd", "x"})
    assert tree.cells == ["three"]
    (shared,) = tree.longer
    assert (shared.count, shared.missing, shared.cells) == (2, True, ["one", "two"])


def test_a_recipe_that_another_goes_on_from_is_a_part_of_it() -> None:
    tree = shared_prefixes({"short": ("a",), "long": ("a", "ab")}, {"ab"})
    (shared,) = tree.longer
    assert (shared.count, shared.missing, shared.cells) == (1, False, ["short", "long"])
