"""What tasks on labelled data share: a dataset's columns by role, its splits, its subgroups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zoopress.errors import CardError, nearest
from zoopress.store import digest
from zoopress.tasks.dataset import Dataset, Part, Table, open_dataset, row_digest
from zoopress.tasks.splits import Place, choose_parts, split_rows
from zoopress.tasks.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zoopress.cards import Card


class Preprocessing(BaseModel):
    """How samples become inputs: a task's `data.preprocessing`; subclasses add keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rows:
    """The rows of one split, their values by role.

    Args:
        tables: the dataset's parts.
        places: where each row is.
        columns: the columns of each role.
    """

    def __init__(
        self,
        tables: Mapping[str, Table],
        places: Sequence[Place],
        columns: Mapping[str, Sequence[str]],
    ) -> None:
        self._tables, self.places, self.columns = tables, places, columns

    def __len__(self) -> int:
        return len(self.places)

    def values(self, role: str, rows: Sequence[int]) -> list[Any]:
        """Return the values of a role's column; of its first, if it has several."""
        return self.column(self.columns[role][0], rows)

    def column(self, name: str, rows: Sequence[int]) -> list[Any]:
        """Return the values of any column of the dataset in some of the rows."""
        # A part is asked once: what reads from a file gains much from that.
        by_part: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            by_part.setdefault(self.places[row].part, []).append(position)
        found: list[Any] = [None] * len(rows)
        for part, positions in by_part.items():
            wanted = [self.places[rows[position]].row for position in positions]
            values = self._tables[part].values(name, wanted)
            for position, value in zip(positions, values, strict=True):
                found[position] = value
        return found

    def where(self, row: int) -> str:
        """Say where a row is, for errors."""
        part, number = self.places[row]
        return f"row {number} of part {part!r}"


class RewrittenRows(Rows):
    """Rows with their strings changed."""

    def __init__(self, rows: Rows, change: Callable[[str], str]) -> None:
        super().__init__(rows._tables, rows.places, rows.columns)
        self._change = change

    def of_strings(self, role: str) -> bool:
        """Return whether a role's values are strings."""
        return isinstance(super().values(role, [0])[0], str)

    def values(self, role: str, rows: Sequence[int]) -> list[Any]:
        found = super().values(role, rows)
        return [self._change(value) if isinstance(value, str) else value for value in found]


class DatasetTask(Task):
    """A task on the rows of a dataset.

    A subclass says which columns it needs, and makes samples of `rows(split)`.

    Class attributes:
        input_roles: what is fed to the model, such as ("image",). Rows whose values of these are
            equal never are in two splits.
        optional_roles: more inputs, of datasets that have them.
        target_roles: what its outputs should be, such as ("label",).
        many: roles that take several columns, named with commas between them.
        synonyms: what columns of a role are often called, besides the role's own name.
        other_data: forms of data without labels that the task takes as well: "text", "file".
        preprocessing_type: the keys of `data.preprocessing`.
    """

    input_roles: ClassVar[tuple[str, ...]]
    optional_roles: ClassVar[tuple[str, ...]] = ()
    target_roles: ClassVar[tuple[str, ...]]
    many: ClassVar[frozenset[str]] = frozenset()
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    other_data: ClassVar[tuple[str, ...]] = ()
    preprocessing_type: ClassVar[type[Preprocessing]] = Preprocessing

    def __init__(self, card: Card, folder: Path) -> None:
        super().__init__(card, folder)
        forms = ("dataset", *self.other_data)
        if all(getattr(self.data, form) is None for form in forms):
            raise CardError(
                f"Card {card.name!r}: the task {self.name!r} needs "
                + " or ".join(f"'data.{form}'" for form in forms)
                + ": labelled samples, such as 'data: {dataset: \"file:data.csv\"}'."
            )
        roles = (*self.input_roles, *self.optional_roles, *self.target_roles)
        for role in self.data.columns:
            if role not in roles:
                raise CardError(
                    f"Card {card.name!r}: 'data.columns': the task {self.name!r} has no role "
                    f"{role!r}.{nearest(role, roles)}"
                )
        self.preprocessing = self._read_preprocessing()

    @property
    def labelled(self) -> bool:
        """Whether the card's data is a dataset."""
        return self.data.dataset is not None

    def fingerprint(self) -> str:
        """Return a digest of the dataset and of all that its splits follow from."""
        return digest([self.dataset.fingerprint(), self.data.model_dump(mode="json")])

    @cached_property
    def dataset(self) -> Dataset:
        """The card's dataset."""
        return open_dataset(self.card, self.plugins)

    @cached_property
    def tables(self) -> Mapping[str, Table]:
        """The dataset's parts that are used, by its own names.

        Raises:
            CardError: if they have no rows at all.
        """
        tables = self.dataset.parts()
        used = {name: tables[name] for name in self.parts.values()}
        if not any(map(len, used.values())):
            raise CardError(f"Card {self.card.name!r}: the dataset {self.data.dataset!r} is empty.")
        return used

    @cached_property
    def parts(self) -> dict[Part, str]:
        """Which part of the dataset is for what."""
        return choose_parts(self.dataset.parts(), self.data, self.card.name)

    @cached_property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of each role; optional roles that the dataset lacks are left out.

        Raises:
            CardError: if a role has none, or the card names one that is not there.
        """
        roles = (*self.input_roles, *self.optional_roles, *self.target_roles)
        found = {role: self.columns_of(role) for role in roles}
        for role in (*self.input_roles, *self.target_roles):
            if not found[role]:
                there = self.common_columns
                raise CardError(
                    f"Card {self.card.name!r}: which column of the dataset is the {role}? It has "
                    f"{', '.join(there) or 'none'}. Say so, for example "
                    f"'data: {{columns: {{{role}: {there[0] if there else role}}}}}'."
                )
        self._check_columns(self.data.groups, "groups")
        return {role: names for role, names in found.items() if names}

    def columns_of(self, role: str) -> tuple[str, ...]:
        """Return the columns that the card names for a role, else those that it usually has.

        Raises:
            CardError: if the card names one that is not there.
        """
        given = self.data.columns.get(role)
        if given is None:
            return self.default_columns(role)
        names = given.split(",") if role in self.many else [given]
        named = tuple(name.strip() for name in names)
        self._check_columns(named, f"columns.{role}")
        return named

    def default_columns(self, role: str) -> tuple[str, ...]:
        """Return the column of the role's own name, else of one that is usual for it, if any."""
        lower = {column.lower(): column for column in reversed(self.common_columns)}
        usual = (role, *self.synonyms.get(role, ()))
        return next(((lower[name],) for name in usual if name in lower), ())

    @cached_property
    def common_columns(self) -> tuple[str, ...]:
        """The columns that all used parts have."""
        first, *others = self.tables.values()
        return tuple(n for n in first.columns if all(n in table.columns for table in others))

    @cached_property
    def places(self) -> Mapping[Split, Sequence[Place]]:
        """The rows of each split.

        Raises:
            CardError: if there are too few.
        """
        inputs = [
            column
            for role in (*self.input_roles, *self.optional_roles)
            for column in self.columns.get(role, ())
        ]
        digests = {
            name: _digests(table, inputs, self.data.split_seed)
            for name, table in self.tables.items()
        }
        return split_rows(digests, self.parts, self.data, self.card.name)

    def rows(self, split: Split) -> Rows:
        """Return the rows of a split.

        Raises:
            CardError: if there are too few, or a column is missing.
        """
        return Rows(self.tables, self.places[split], self.columns)

    def groups(self, split: Split) -> Mapping[str, Sequence[str]]:
        """Return each row's values in the columns that `data.groups` names."""
        if not self.labelled:
            return {}
        rows = self.rows(split)
        every = range(len(rows))
        return {name: [str(v) for v in rows.column(name, every)] for name in self.data.groups}

    def _check_columns(self, names: Iterable[str], key: str) -> None:
        there = self.common_columns
        for name in names:
            if name not in there:
                raise CardError(
                    f"Card {self.card.name!r}: 'data.{key}': the dataset has no column {name!r}."
                    f"{nearest(name, there)}"
                )

    def _read_preprocessing(self) -> Any:
        """Return `data.preprocessing` as `preprocessing_type` has it.

        Raises:
            CardError: naming every wrong key or value.
        """
        try:
            return self.preprocessing_type.model_validate(self.data.preprocessing)
        except ValidationError as error:
            problems = [self._explain(item) for item in error.errors()]
            raise CardError(
                f"Card {self.card.name!r}: 'data.preprocessing': {'; '.join(problems)}"
            ) from None

    def _explain(self, item: Any) -> str:
        name = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            keys = {**self.preprocessing_type.model_fields}
            for part in item["loc"][:-1]:
                keys = getattr(keys[str(part)].annotation, "model_fields", {})
                name = str(item["loc"][-1])
            return f"the task {self.name!r} has no key {name!r}.{nearest(name, keys)}"
        message = item["msg"].removeprefix("Value error, ")
        return f"{name}: {message[:1].lower()}{message[1:]}, got {item['input']!r}."


def _digests(table: Table, columns: Sequence[str], seed: int) -> list[bytes]:
    """Return the digest of each row's values in some columns, reading a block at a time."""
    found: list[bytes] = []
    for start in range(0, len(table), _BLOCK):
        rows = range(start, min(len(table), start + _BLOCK))
        values = [table.values(column, rows) for column in columns]
        found += [row_digest(row, seed) for row in zip(*values, strict=True)]
    return found


_BLOCK = 1024
