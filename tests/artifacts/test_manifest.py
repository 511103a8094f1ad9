"""The manifest's groups: short, and the same edits and forms again."""

from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import TypeAdapter

from zoopress.artifacts.encoding import Alias, AnyEntry, Boolean, Masked, Zeros
from zoopress.artifacts.manifest_groups import (
    group_edits,
    group_tensors,
    ungroup_edits,
    ungroup_tensors,
)
from zoopress.models.edits import AnyEdit, Edit, Keep, Pack, Replace, Resize
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe

PATHS = st.sampled_from(["", "a", "a.b", "b.0", "b.1", "b.2", "b.1.c", "{x},y"])
EDITS: st.SearchStrategy[AnyEdit] = st.one_of(
    st.builds(Resize, module=PATHS, shapes=st.sampled_from([{"weight": [2, 3]}, {"bias": [1]}])),
    st.builds(Replace, module=PATHS, layer=st.sampled_from("xy"), arguments=st.just({"rank": 2})),
    st.builds(
        Pack,
        module=PATHS,
        attribute=st.sampled_from(["weight", "bias"]),
        packing=st.just("quantized"),
        dtype=st.sampled_from([None, "float16"]),
        arguments=st.sampled_from([{}, {"bits": 4}, {"bits": 8, "symmetric": True}]),
    ),
    st.builds(Keep, module=PATHS, indices=st.sampled_from([[0], [0, 2]])),
)


def validated(edits: list[dict[str, Any]]) -> list[AnyEdit]:
    return TypeAdapter(list[Edit]).validate_python(edits)


def place(edit: AnyEdit) -> str:
    return f"{edit.module}.{edit.attribute}" if isinstance(edit, Pack) else edit.module


def related(one: AnyEdit, other: AnyEdit) -> bool:
    """Tell whether the order of two edits may matter."""
    first, second = sorted([place(one), place(other)], key=len)
    within = first in ("", second) or second.startswith(first + ".")
    return within or one.edit != other.edit or isinstance(one, Keep)


@given(edits=st.lists(EDITS, max_size=12))
def test_edits_come_back_in_an_order_that_makes_no_difference(edits: list[AnyEdit]) -> None:
    back = validated(ungroup_edits(group_edits(edits)))
    key = str
    assert sorted(map(key, back)) == sorted(map(key, edits))
    for i, one in enumerate(edits):
        for other in edits[i + 1 :]:
            if related(one, other) and one != other:
                assert [e for e in back if e in (one, other)] == [
                    e for e in edits if e in (one, other)
                ]
    assert group_edits(back) == group_edits(edits)


def test_what_is_done_to_many_modules_is_written_once() -> None:
    edits: list[AnyEdit] = []
    for layer in range(12):
        for name, bits in (("query", 4), ("value", 8)):
            for attribute in ("weight", "bias"):
                edits.append(
                    Pack(
                        module=f"layer.{layer}.{name}",
                        attribute=attribute,
                        packing="quantized",
                        arguments={"bits": bits},
                    )
                )
    assert group_edits(edits) == [
        {
            "edit": "pack",
            "parameters": f"layer.{{0..11}}.{name}.{{weight,bias}}",
            "packing": "quantized",
            "arguments": {"bits": bits},
        }
        for name, bits in (("query", 4), ("value", 8))
    ]


ENTRIES: st.SearchStrategy[AnyEntry] = st.one_of(
    st.just(Boolean()),
    st.just(Masked()),
    st.just(Zeros()),
    st.builds(Alias, of=st.sampled_from(["x", "y.z"]), tied=st.booleans()),
)


@given(entries=st.dictionaries(st.text(max_size=5), ENTRIES, max_size=9))
def test_forms_of_tensors_come_back(entries: dict[str, AnyEntry]) -> None:
    back = ungroup_tensors(group_tensors(entries))
    assert back.keys() == entries.keys()
    for name, entry in entries.items():
        assert type(entry).model_validate(back[name]) == entry


@pytest.mark.parametrize("ungroup", [ungroup_edits, ungroup_tensors])
@pytest.mark.parametrize("groups", [None, 3, {}, "a", [3], [{}], [{"modules": 3}], [[]]])
def test_groups_of_another_kind_are_refused(ungroup: Any, groups: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a list|must be an object|in a string"):
        ungroup(groups)


def test_a_config_without_its_defaults_is_the_same_config() -> None:
    """What an artifact says of a stage is enough to run it again."""
    plugins = load_plugins()
    seen = 0
    for name in plugins.recipes:
        for stage in load_recipe(name, plugins).stages:
            for technique in stage.techniques:
                short = technique.config.model_dump(mode="json", exclude_defaults=True)
                assert type(technique.config).model_validate(short) == technique.config
                seen += 1
    assert seen
