"""Whether a recipe's stages can do anything with a card's model: asked before there are weights.

The model is built on the meta device, where tensors have shapes and no values. What stages before
left of it is followed weight by weight, for as long as its weights keep their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from zoopress.errors import PluginError, StageError, ZoopressError
from zoopress.models.model import Model
from zoopress.models.weights import WEIGHT_KINDS, Weight
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe
from zoopress.techniques import Technique, float_weights, folding


@dataclass
class Outline(Model):
    """A model without values, and which of its weights earlier stages have taken."""

    taken: dict[str, str] = field(default_factory=dict)
    """The stage that leaves a weight no longer floating point, by the weight's name."""

    def weights(
        self,
        kinds: Collection[str] = WEIGHT_KINDS,
        include: Collection[str] = ("*",),
        exclude: Collection[str] = (),
    ) -> Iterator[Weight]:
        """Yield the weights that are still floating point."""
        for weight in super().weights(kinds, include, exclude):
            if weight.name not in self.taken:
                yield weight


def check_feasible(module: nn.Module, recipe: Recipe, plugins: Plugins) -> None:
    """Check that each stage finds something to work on in a model.

    Args:
        module: the model, built by `zoopress.sources.build_on_meta`; it is only looked at.
        recipe: the stages.
        plugins: what is registered.

    Raises:
        StageError: naming the first stage that would not, with the reason.
        PluginError: if a technique fails to answer.
    """
    outline = Outline(module, plugins.layers)
    for position, stage in enumerate(recipe.stages, start=1):
        for technique in stage.techniques:
            here = f"stage {position} ({technique.name})"
            with folding(technique, outline):
                if refusal := _refusal(technique, outline):
                    raise StageError(f"{here.capitalize()}: {refusal}{_taken(outline, technique)}")
                _take(outline, technique, here)
            if technique.effects().restructures:
                return  # names are others from here on


def _refusal(technique: Technique[Any], outline: Outline) -> str | None:
    try:
        return technique.refusal(outline)
    except ZoopressError as error:
        return str(error)
    except Exception as error:
        raise PluginError(
            f"The technique {technique.name!r} failed to say whether it can work on a model: "
            f"{type(error).__name__}: {error}. `refusal` is given tensors without values. Repair "
            "the plugin, or leave it out with ZOOPRESS_BLOCK_PLUGINS."
        ) from error


def _take(outline: Outline, technique: Technique[Any], here: str) -> None:
    """Note which weights are no longer floating point after a stage."""
    scope, destroyed = technique.scope(), technique.effects().destroys
    for weight in list(outline.weights()):
        if float_weights(weight.kind) in destroyed and scope.has(weight.kind, weight.name):
            outline.taken[weight.name] = here


def _taken(outline: Outline, technique: Technique[Any]) -> str:
    """Say which earlier stages took weights that a technique selects."""
    scope = technique.scope()
    found = Counter(
        outline.taken[weight.name]
        for weight in Model.weights(outline)
        if weight.name in outline.taken and scope.has(weight.kind, weight.name)
    )
    if not found:
        return ""
    takers = ", ".join(f"{who} takes {count}" for who, count in found.items())
    return f" Of the weights that it selects, {takers}; put this stage before, or select others."
