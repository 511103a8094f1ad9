"""Splits share no row, whatever a dataset's files hold."""

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from zoopress.cards import Data
from zoopress.errors import CardError
from zoopress.tasks import File, Split, row_digest
from zoopress.tasks.splits import Place, choose_parts, split_rows, split_series

VALUES = st.recursive(
    st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ROWS = st.lists(st.integers(0, 30), max_size=60)  # few values, so that many rows are equal
PARTS = st.fixed_dictionaries(
    {"train": ROWS}, optional={"validation": ROWS, "test": ROWS, "unused": ROWS}
)
NUMBERS = st.builds(
    Data,
    dataset=st.just("file:data.csv"),
    evaluation_samples=st.integers(2, 6),
    calibration_samples=st.integers(1, 4),
    validation_samples=st.none() | st.integers(1, 4),
    training_samples=st.none() | st.integers(1, 10),
)


def split(parts: Mapping[str, Sequence[int]], data: Data) -> dict[Split, list[Place]]:
    digests = {name: [row_digest([row]) for row in rows] for name, rows in parts.items()}
    return split_rows(digests, choose_parts(parts, data, "card"), data, "card")


def contents(
    parts: Mapping[str, Sequence[int]], splits: Mapping[Split, Sequence[Place]]
) -> dict[Split, list[int]]:
    return {
        name: [parts[place.part][place.row] for place in places] for name, places in splits.items()
    }


@given(PARTS, NUMBERS)
def test_no_two_splits_share_a_row_and_each_has_what_was_asked(
    parts: dict[str, list[int]], data: Data
) -> None:
    try:
        splits = split(parts, data)
    except CardError:
        return
    found = contents(parts, splits)
    for one in found:
        for other in found:
            assert one == other or not set(found[one]) & set(found[other])
    assert len(splits["test"]) == data.evaluation_samples
    assert len(splits["calibration"]) == data.calibration_samples
    if data.validation_samples:
        assert len(splits["validation"]) == data.validation_samples
    if data.training_samples:
        assert len(splits["training"]) <= data.training_samples
    for places in splits.values():
        assert len(set(places)) == len(places)


@given(PARTS, NUMBERS)
def test_nothing_of_the_test_part_is_learned_from_even_if_it_is_not_evaluated(
    parts: dict[str, list[int]], data: Data
) -> None:
    try:
        found = contents(parts, split(parts, data))
    except CardError:
        return
    held = set(parts.get("test", ()))
    for name in ("calibration", "training", "validation"):
        assert not held & set(found[name])
    if "test" in parts and "validation" in parts:
        held = set(parts["validation"])
        assert not held & {*found["calibration"], *found["training"]}


@given(PARTS, NUMBERS, st.randoms(use_true_random=False))
def test_the_order_of_a_file_changes_nothing(
    parts: dict[str, list[int]], data: Data, order: random.Random
) -> None:
    permuted = {name: order.sample(rows, len(rows)) for name, rows in parts.items()}
    try:
        found = contents(parts, split(parts, data))
    except CardError:
        with pytest.raises(CardError):
            split(permuted, data)
        return
    assert contents(permuted, split(permuted, data)) == found


def test_more_evaluation_samples_of_an_own_test_part_leave_training_as_it_is() -> None:
    parts = {"train": list(range(60)), "test": list(range(50, 90))}
    few = Data(dataset="file:d", evaluation_samples=5, calibration_samples=5)
    many = few.model_copy(update={"evaluation_samples": 40})
    assert split(parts, few)["training"] == split(parts, many)["training"]


def test_a_planted_leak_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"train": list(range(50)), "test": [*range(100, 110), 7, 8]}
    data = Data(dataset="file:d", evaluation_samples=12, calibration_samples=5)
    with caplog.at_level(logging.WARNING, "zoopress.tasks"):
        splits = split(parts, data)
    learned = {place for name in splits if name != "test" for place in splits[name]}
    assert Place("train", 7) not in learned
    assert Place("train", 8) not in learned
    assert len(learned) == 48
    assert "2 of the 50 rows of the dataset's part 'train'" in caplog.text


def test_a_clean_dataset_brings_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"train": [1, 1, 2, 3, 4, 5, 6, 7, 8], "test": [20, 21, 22]}
    split(parts, Data(dataset="file:d", evaluation_samples=3, calibration_samples=2))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "equal",
    [
        [3, 3.0, np.int8(3), np.float32(3.0)],
        [True, 1, np.bool_(True)],
        [0.0, -0.0, 0],
        ["é", np.str_("é")],
        [[1, "a"], (1, "a"), [1.0, "a"]],
        [File(b"x", "a.png"), File(b"x", "b.png")],
        [np.ones(2), np.ones(3)[:2], np.ones((2, 2))[:, 0]],
    ],
)
def test_equal_values_have_one_digest_however_they_are_held(equal: list[Any]) -> None:
    assert len({row_digest([value]) for value in equal}) == 1


@given(st.lists(VALUES, min_size=2, max_size=2))
def test_different_values_have_different_digests(pair: list[Any]) -> None:
    one, other = pair
    assert (row_digest([one]) == row_digest([other])) == (one == other)


def test_a_digest_tells_where_one_value_ends() -> None:
    rows = [
        ["ab", "c"],
        ["a", "bc"],
        [["a"], "bc"],
        ["abc"],
        [1, 2],
        [12],
        ["1", "2"],
        [b"ab", "c"],
    ]
    assert len({row_digest(row) for row in rows}) == len(rows)


def test_another_seed_makes_other_splits_of_the_same_rows() -> None:
    def first(seed: int) -> list[Place]:
        digests = {"all": [row_digest([row], seed) for row in range(100)]}
        data = Data(dataset="file:d", evaluation_samples=10, split_seed=seed)
        return split_rows(digests, {"training": "all"}, data, "card")["test"]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_validation_is_a_tenth_of_what_is_left_unless_asked_for() -> None:
    parts = {"all": list(range(130))}
    data = Data(dataset="file:d", evaluation_samples=20, calibration_samples=10)
    splits = split(parts, data)
    assert len(splits["validation"]) == 10
    assert len(splits["training"]) == 90


@pytest.mark.parametrize(
    ("rows", "numbers", "said"),
    [
        (10, {"evaluation_samples": 256}, "'data.evaluation_samples' is 256, but only 10 rows"),
        (
            10,
            {"evaluation_samples": 8, "calibration_samples": 4},
            "'data.calibration_samples' is 4, but only 2 rows are left for calibration: part 'all' "
            "of the dataset has 10, and 8 for test are taken",
        ),
        (
            10,
            {"evaluation_samples": 4, "calibration_samples": 4, "validation_samples": 5},
            "only 2 rows are left for validation",
        ),
    ],
)
def test_too_few_rows_are_told_with_the_counts(
    rows: int, numbers: dict[str, int], said: str
) -> None:
    with pytest.raises(CardError, match="card") as raised:
        split({"all": list(range(rows))}, Data.model_validate({"dataset": "file:d", **numbers}))
    assert said in str(raised.value)


def test_too_few_rows_because_of_a_leak_say_so() -> None:
    parts = {"train": [1, 2, 3, 4], "test": [1, 2, 3]}
    data = Data(dataset="file:d", evaluation_samples=3, calibration_samples=2)
    with pytest.raises(CardError, match="part 'train' of the dataset has 4, 3 of them also in"):
        split(parts, data)


@pytest.mark.parametrize(
    ("names", "given", "chosen"),
    [
        (["train", "test"], {}, {"training": "train", "test": "test"}),
        (["Train", "VAL"], {}, {"training": "Train", "validation": "VAL"}),
        (["train", "t10k"], {}, {"training": "train", "test": "t10k"}),
        (["all"], {}, {"training": "all"}),
        (["test"], {}, {"training": "test"}),
        (
            ["train", "validation", "test"],
            {"test": "validation"},
            {"training": "train", "test": "validation"},
        ),
        (["a", "b"], {"training": "b", "test": "a"}, {"training": "b", "test": "a"}),
    ],
)
def test_parts_are_found_by_their_usual_names_unless_the_card_says_more(
    names: list[str], given: dict[str, str], chosen: dict[str, str]
) -> None:
    data = Data.model_validate({"dataset": "file:d", "parts": given})
    assert choose_parts(names, data, "card") == chosen


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["train", "test"], {"test": "tset"}, "no part 'tset'. Did you mean 'test'"),
        (["left", "right"], {}, "It has left, right"),
        (["train", "x"], {"training": "train", "test": "train"}, "names one part twice"),
    ],
)
def test_parts_that_cannot_be_told_are_an_error(
    names: list[str], given: dict[str, str], said: str
) -> None:
    data = Data.model_validate({"dataset": "file:d", "parts": given})
    with pytest.raises(CardError, match="card") as raised:
        choose_parts(names, data, "card")
    assert said in str(raised.value)


@given(st.integers(1, 120), st.none() | st.integers(1, 60), NUMBERS, st.integers(2, 9))
def test_windows_of_different_splits_share_no_time_step(
    length: int, test: int | None, data: Data, span: int
) -> None:
    lengths = {"train": length} | ({"test": test} if test else {})
    parts = choose_parts(lengths, data, "card")
    try:
        splits = split_series(lengths, parts, data, "card", span)
    except CardError:
        return
    steps = {
        name: {(place.part, place.row + i) for place in places for i in range(span)}
        for name, places in splits.items()
    }
    for one in steps:
        for other in steps:
            assert one == other or not steps[one] & steps[other]
    for name, each in steps.items():
        assert all(0 <= step < lengths[part] for part, step in each), name
    assert len(splits["test"]) == data.evaluation_samples
    assert len(splits["calibration"]) == data.calibration_samples


def test_a_series_is_tested_on_its_end_and_too_short_ones_are_told() -> None:
    data = Data(dataset="file:d", evaluation_samples=5, calibration_samples=3)
    splits = split_series({"all": 60}, {"training": "all"}, data, "card", 4)
    # 5 windows of 4 steps take the last 8 steps, 3 of them the first 6.
    assert splits["test"] == [Place("all", row) for row in range(52, 57)]
    assert splits["calibration"] == [Place("all", row) for row in range(3)]
    # 46 steps are left, 43 windows: a tenth of them for validation, which takes 7 steps.
    assert splits["validation"] == [Place("all", row) for row in range(45, 49)]
    assert splits["training"] == [Place("all", row) for row in range(6, 42)]
    with pytest.raises(CardError, match="only 0 windows of 20 time steps are left for test"):
        split_series({"all": 19}, {"training": "all"}, data, "card", 20)
