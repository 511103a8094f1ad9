"""docs/tasks.md tells all that tasks have, and its cards are cards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from zoopress.cards import Card
from zoopress.errors import CardError
from zoopress.plugins import load_plugins

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text(encoding="utf-8")
PLUGINS = load_plugins()
TASKS = sorted(PLUGINS.references["tasks"])
CARDS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)


def section(name: str) -> str:
    found = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, f"docs/tasks.md has no section `{name}`"
    return found[1]


def with_linked_keys(anchor: str) -> str:
    """Return a section and those whose keys it says it has."""
    heading = rf"^##+ `?{re.escape(anchor)}`?\n.*?(?=^##|\Z)"
    found = re.search(heading, PAGE, re.M | re.S | re.I)
    assert found is not None, f"docs/tasks.md has no section {anchor}"
    linked = re.findall(r"[Kk]eys (?:are those )?of \[[^\]]*\]\(#([\w-]+)\)", found[0])
    return found[0] + "".join(map(with_linked_keys, linked))


def keys(settings: type[BaseModel]) -> set[str]:
    """Return the names of a model's fields and of those of the models in it."""
    found = set(settings.model_fields)
    for field in settings.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_task_is_documented_with_its_metric_and_roles(name: str) -> None:
    task: Any = PLUGINS.resolve("tasks", name)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| [`{name}`]"))
    assert task.metric is None or f"`{task.metric}`" in row
    assert row.endswith("| yes |") != task.higher_is_better
    roles = [
        role
        for kind in ("input_roles", "optional_roles", "target_roles")
        for role in getattr(task, kind, ())
    ]
    assert [role for role in roles if f"`{role}`" not in section(name)] == []


@pytest.mark.parametrize("name", TASKS)
def test_every_key_of_its_preprocessing_is_documented(name: str) -> None:
    settings = getattr(PLUGINS.resolve("tasks", name), "preprocessing_type", BaseModel)
    text = with_linked_keys(name)
    assert {key for key in keys(settings) if f"`{key}`" not in text} == set()


@pytest.mark.parametrize("name", TASKS)
def test_a_card_of_each_task_is_shown(name: str) -> None:
    assert f"\ntask: {name}\n" in section(name)


@pytest.mark.parametrize("text", CARDS, ids=lambda text: re.search(r"name: (.*)", text)[1])
def test_shown_cards_are_valid(text: str) -> None:
    card = Card.model_validate(yaml.safe_load(text))
    task: Any = PLUGINS.resolve("tasks", card.task)(card, Path())
    for role in card.data.columns if card.data else ():
        roles = (*task.input_roles, *task.optional_roles, *task.target_roles)
        assert role in roles


def test_an_unknown_key_names_the_nearest() -> None:
    card = Card.model_validate(yaml.safe_load(CARDS[0]) | {"task": "text-classification"})
    data = card.data.model_copy(update={"preprocessing": {"max_token": 3}})  # type: ignore[union-attr]
    wrong = card.model_copy(update={"data": data})
    with pytest.raises(CardError, match=r"no key 'max_token'\. Did you mean 'max_tokens'"):
        PLUGINS.resolve("tasks", "text-classification")(wrong, Path())
