"""Recipes: what users write of a chain of techniques."""

from __future__ import annotations

from zoopress.recipes.gate_choices import (
    ChosenGate as ChosenGate,
)
from zoopress.recipes.recipe import (
    Recipe as Recipe,
)
from zoopress.recipes.recipe import (
    Stage as Stage,
)
from zoopress.recipes.recipe import (
    Targets as Targets,
)
from zoopress.recipes.recipe import (
    load_recipe as load_recipe,
)
from zoopress.recipes.recipe import (
    parse_recipe as parse_recipe,
)
