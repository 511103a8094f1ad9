"""Recipes: what users write of a chain of techniques."""

from __future__ import annotations

from zoopress.recipes.gate_choices import (
    ChosenGate as ChosenGate,
)
from zoopress.recipes.recipe import (
    Recipe as Recipe,
    Stage as Stage,
    Targets as Targets,
    load_recipe as load_recipe,
    parse_recipe as parse_recipe,
)
