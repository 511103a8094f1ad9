"""Which rows of a dataset are for what: no split shares a row with another.

A row's place follows from the digest of its input values. Splits take rows in the order of their
digests, one split after the other, and never one whose inputs a split before has. So equal rows
end up in one split in whatever order a file has them, and a row of the training part that is also
in the test part is left out, even if its label is another.

Where the rows of a split come from:

    what the dataset comes in      test      validation      calibration, training
    training, validation, test     test      validation      training
    training, test                 test      training        training
    training, validation           training  validation      training
    all, or any one part           all       all             all
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING, NamedTuple

from zoopress.errors import CardError, nearest
from zoopress.tasks.dataset import Part
from zoopress.tasks.task import Split

if TYPE_CHECKING:
    from zoopress.cards import Data

KNOWN_PARTS: dict[Part, tuple[str, ...]] = {
    "training": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "t10k"),
}
"""What parts are usually called."""

LARGEST_VALIDATION = 2000
"""Most rows that are set aside for validation unless the card asks for more."""

log = logging.getLogger("zoopress.tasks")


class Place(NamedTuple):
    """Where a row is: in which of the dataset's parts, and the how-manieth of it."""

    part: str
    row: int


def choose_parts(names: Iterable[str], data: Data, card: str) -> dict[Part, str]:
    """Return which of a dataset's parts are for what; what is left out is carved from "training".

    Args:
        names: the dataset's own names of its parts.
        data: the card's; its `parts` go before the usual names.
        card: the card's name, for errors.

    Raises:
        CardError: if the card names a part that is not there, or one twice, or none can be told to
            be for training.
    """
    there = list(names)
    chosen: dict[Part, str] = dict(data.parts)
    for role, name in chosen.items():
        if name not in there:
            raise CardError(
                f"Card {card!r}: 'data.parts.{role}': the dataset has no part {name!r}."
                f"{nearest(name, there)}"
            )
    if len(set(chosen.values())) < len(chosen):
        raise CardError(
            f"Card {card!r}: 'data.parts' names one part twice: {chosen}. Leave out the parts that "
            "the dataset does not have; they are carved from the training part."
        )
    for role, usual in KNOWN_PARTS.items():
        free = {name.lower(): name for name in there if name not in chosen.values()}
        found = next((free[name] for name in usual if name in free), None)
        if role not in chosen and found is not None:
            chosen[role] = found
    if len(there) == 1:
        return {"training": there[0]}
    if "training" not in chosen:
        raise CardError(
            f"Card {card!r}: which part of the dataset is for training? It has "
            f"{', '.join(there) or 'none'}. Say so, for example "
            f"'data: {{parts: {{training: {there[0] if there else 'train'}}}}}'."
        )
    return chosen


def split_rows(
    digests: Mapping[str, Sequence[bytes]], parts: Mapping[Part, str], data: Data, card: str
) -> dict[Split, list[Place]]:
    """Assign the rows of a dataset to the four splits.

    Args:
        digests: of each row's input values, by the dataset's own name of the part.
        parts: which part is for what, "training" at least.
        data: the card's, which says how many rows each split takes.
        card: the card's name, for messages.

    Returns:
        The rows of each split, in the order of their digests.

    Raises:
        CardError: if there are fewer rows than the card asks for.
    """
    free, leaks = _without_leaks(digests, parts)
    splits: dict[Split, list[Place]] = {}

    def take(split: Split, source: Part, count: int | None) -> None:
        name, rows = parts[source], free[source]
        if count is not None and len(rows) < count:
            before = [f"{len(splits[s])} for {s}" for s in splits if _is_from(splits[s], name)]
            raise CardError(
                f"Card {card!r}: 'data.{_KEYS[split]}' is {count}, but only {len(rows)} rows are "
                f"left for {split}: part {name!r} of the dataset has {len(digests[name])}"
                + "".join(f", {n} of them also in {other!r}" for other, n in leaks[source].items())
                + (f", and {', '.join(before)} are taken" if before else "")
                + ". Ask for fewer, here or there, or bring more data."
            )
        splits[split] = [Place(name, row) for row in rows[:count]]
        free[source] = _after(rows, count, digests[name])

    take("test", "test" if "test" in parts else "training", data.evaluation_samples)
    if "validation" in parts:
        take("validation", "validation", data.validation_samples)
    take("calibration", "training", data.calibration_samples)
    if "validation" not in parts:
        tenth = min(LARGEST_VALIDATION, len(free["training"]) // 10)
        take("validation", "training", data.validation_samples or tenth)
    take("training", "training", min(len(free["training"]), data.training_samples or sys.maxsize))

    for source, others in leaks.items():
        for other, count in others.items():
            log.warning(
                "Card %r: %d of the %d rows of the dataset's part %r have the same inputs as rows "
                "of part %r, and are left out.",
                *(card, count, len(digests[parts[source]]), parts[source], other),
            )
    return splits


def split_series(
    lengths: Mapping[str, int], parts: Mapping[Part, str], data: Data, card: str, span: int
) -> dict[Split, list[Place]]:
    """Assign the windows of time series to the four splits, so that none shares a time step.

    A part is one series, and a window is told by its first step. What is carved from one part are
    blocks of it, from the first step to the last: calibration, training, validation, test.

    Args:
        lengths: time steps of each part.
        parts: which part is for what, "training" at least.
        data: the card's, which says how many windows each split takes.
        card: the card's name, for messages.
        span: time steps of a window with what follows it.

    Raises:
        CardError: if a series is too short.
    """
    blocks = {name: (0, length) for name, length in lengths.items()}
    splits: dict[Split, list[Place]] = {}

    def left(source: Part) -> int:
        start, stop = blocks[parts[source]]
        return max(0, stop - start - span + 1)

    def take(split: Split, source: Part, count: int | None, late: bool = True) -> None:
        name, there = parts[source], left(source)
        start, stop = blocks[name]
        if count is not None and there < count:
            raise CardError(
                f"Card {card!r}: 'data.{_KEYS[split]}' is {count}, but only {there} windows of "
                f"{span} time steps are left for {split}: part {name!r} of the dataset has "
                f"{lengths[name]} steps, and splits share none. Ask for fewer, here or there, or "
                "for a shorter window."
            )
        count = there if count is None else count
        first = stop - span + 1 - count if late else start
        splits[split] = [Place(name, step) for step in range(first, first + count)]
        if count:
            blocks[name] = (start, first) if late else (first + count + span - 1, stop)

    take("test", "test" if "test" in parts else "training", data.evaluation_samples)
    if "validation" in parts:
        take("validation", "validation", data.validation_samples)
    take("calibration", "training", data.calibration_samples, late=False)
    if "validation" not in parts:
        tenth = min(LARGEST_VALIDATION, left("training") // 10)
        take("validation", "training", data.validation_samples or tenth)
    take("training", "training", min(left("training"), data.training_samples or sys.maxsize))
    return splits


_KEYS: dict[Split, str] = {
    "test": "evaluation_samples",
    "validation": "validation_samples",
    "calibration": "calibration_samples",
    "training": "training_samples",
}


def _without_leaks(
    digests: Mapping[str, Sequence[bytes]], parts: Mapping[Part, str]
) -> tuple[dict[Part, list[int]], dict[Part, dict[str, int]]]:
    """Return each part's rows by digest, and how many are left out, by the part that has them too.

    A row stays in the first of test, validation and training. All of the test part counts, also
    what the card does not ask for: more evaluation samples must not change what was learned from.
    """
    free: dict[Part, list[int]] = {}
    leaks: dict[Part, dict[str, int]] = {}
    owners: dict[bytes, str] = {}
    order: tuple[Part, ...] = ("test", "validation", "training")
    for source in order:
        if source not in parts:
            continue
        rows = digests[parts[source]]
        leaks[source] = dict(Counter(owners[row] for row in rows if row in owners))
        ordered = sorted(range(len(rows)), key=rows.__getitem__)
        free[source] = [row for row in ordered if rows[row] not in owners]
        owners.update((row, parts[source]) for row in rows if row not in owners)
    return free, leaks


def _after(rows: Sequence[int], count: int | None, digests: Sequence[bytes]) -> list[int]:
    """Return the rows after the first `count`, without those that equal the last of these."""
    if not count:
        return list(rows) if count == 0 else []
    last = digests[rows[count - 1]]
    return list(dropwhile(lambda row: digests[row] == last, rows[count:]))


def _is_from(places: Sequence[Place], part: str) -> bool:
    return bool(places) and places[0].part == part
