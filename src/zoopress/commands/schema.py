"""`zoopress schema`: what editors complete and check cards and recipes with."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Written(str, Enum):
    """What users write."""

    card = "card"
    recipe = "recipe"


def schema(
    kind: Annotated[Written, typer.Argument(help="Of what: card or recipe.")],
) -> None:
    """Print the JSON Schema of cards or recipes, with all that installed plugins register.

    Examples:

        zoopress schema recipe > recipe.schema.json

        zoopress schema card > card.schema.json
    """
    from zoopress.cards.schema import card_schema
    from zoopress.commands.arguments import loaded_plugins, print_json
    from zoopress.recipes.schema import recipe_schema

    made = {Written.card: card_schema, Written.recipe: recipe_schema}[kind](loaded_plugins())
    print_json(made, indent=2, ensure_ascii=False)
