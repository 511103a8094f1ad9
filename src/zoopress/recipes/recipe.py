"""A recipe: the stages a model goes through, and the targets its result must meet."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from zoopress.config import PLUGINS
from zoopress.errors import PluginError, RecipeError, nearest
from zoopress.recipes.gate_choices import ChosenGate, effective, parse_gates
from zoopress.techniques import Technique
from zoopress.yaml_source import YamlSource, read_yaml, validate, validate_mapping

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


class Targets(BaseModel):
    """Bounds that a result must meet; unset ones are not checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_cosine: float | None = Field(
        default=None, ge=-1, le=1, description="mean cosine similarity to the original's outputs"
    )
    min_label_loyalty: float | None = Field(
        default=None, ge=0, le=1, description="share of inputs with the original's label"
    )
    min_probability_loyalty: float | None = Field(
        default=None, ge=0, le=1, description="1 − √(Jensen–Shannon divergence) to the original"
    )
    min_compression_ratio: float | None = Field(
        default=None, gt=0, description="original bytes ÷ compressed bytes, all files"
    )
    max_size_bytes: int | None = Field(default=None, gt=0, description="all files together")
    max_metric_drop: float | None = Field(
        default=None,
        ge=0,
        description="how much worse than the original's the task's metric may be, in its own unit: "
        "0.01 of accuracy is one point",
    )
    worst_metric: float | None = Field(
        default=None,
        description="the worst value that the task's metric may have: the least accuracy, the "
        "largest perplexity",
    )


BESIDES = ("targets", "recovery", "gates")
"""The keys of a stage that are not of its technique's config."""


class _RecipeFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        description="names the output folder; by default the file's or the section's name",
    )
    description: str = Field(default="", description="for people")
    seed: int = Field(default=0, ge=0, lt=2**63, description="equal seeds give equal results")
    targets: Targets = Field(default=Targets(), description="bounds that the result must meet")
    gates: list[Any] = Field(default=[], description="what results must show besides")
    measures: tuple[str, ...] = Field(
        default=(), description="what reports measure besides what the card asks for: runtimes"
    )
    stages: list[dict[str, Any]] = Field(
        min_length=1, description="what the model goes through, in order"
    )


@dataclass(frozen=True)
class Stage:
    """One link of a chain: a technique with its config, and targets for its result.

    Attributes:
        technique: what compresses.
        targets: bounds for the result of this stage.
        recovery: what trains the model before the stage is judged, if anything does.
        gates: what its result is asked besides what the recipe asks of every stage.
    """

    technique: Technique[Any]
    targets: Targets = field(default_factory=Targets)
    recovery: Technique[Any] | None = None
    gates: tuple[ChosenGate, ...] = ()

    @property
    def name(self) -> str:
        return self.technique.name

    def as_dict(self, defaults: bool = True) -> dict[str, Any]:
        """Return the stage as a recipe spells it, without its targets and gates."""
        spelled = _spelled(self.technique, defaults)
        if self.recovery is not None:
            spelled["recovery"] = _spelled(self.recovery, defaults)
        return spelled

    @property
    def techniques(self) -> tuple[Technique[Any], ...]:
        """The technique, then what recovers from it."""
        return (self.technique,) if self.recovery is None else (self.technique, self.recovery)


def _spelled(technique: Technique[Any], defaults: bool) -> dict[str, Any]:
    config = technique.config.model_dump(mode="json", exclude_defaults=not defaults)
    return {"technique": technique.name, **config}


@dataclass(frozen=True)
class Recipe:
    """Stages in order, with validated configs."""

    name: str
    stages: tuple[Stage, ...]
    targets: Targets = field(default_factory=Targets)
    seed: int = 0
    description: str = ""
    gates: tuple[ChosenGate, ...] = ()
    measures: tuple[str, ...] = ()
    """What reports measure besides what the card asks for."""

    def targets_of(self, position: int) -> Targets:
        """Return what a stage, 1 for the first, is held to: its own targets before the recipe's."""
        own = self.stages[position - 1].targets.model_dump(exclude_none=True)
        return Targets(**{**self.targets.model_dump(exclude_none=True), **own})

    def gates_of(self, position: int) -> tuple[ChosenGate, ...]:
        """Return what a stage is asked: the recipe's gates, and its own, which take their place."""
        return effective(self.gates, self.stages[position - 1].gates)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, defaults included; gates and measures if there are any."""
        return {
            "name": self.name,
            "description": self.description,
            "seed": self.seed,
            "stages": [
                {
                    **stage.as_dict(),
                    "targets": stage.targets.model_dump(exclude_none=True),
                    **_spelled_gates(stage.gates),
                }
                for stage in self.stages
            ],
            "targets": self.targets.model_dump(exclude_none=True),
            **_spelled_gates(self.gates),
            **({"measures": list(self.measures)} if self.measures else {}),
        }


def _spelled_gates(gates: tuple[ChosenGate, ...]) -> dict[str, Any]:
    # A recipe without gates is written as before there were any: its reports stay the same bytes.
    return {"gates": [gate.as_dict() for gate in gates]} if gates else {}


def load_recipe(reference: str, plugins: Plugins) -> Recipe:
    """Read a recipe.

    Args:
        reference: a file, a file's section as "params.yaml#recipes.hybrid", or the name of a recipe
            that a plugin brings.
        plugins: which techniques there are.

    Raises:
        RecipeError: if it is missing or malformed.
    """
    file, _, section = reference.partition("#")
    path = Path(file)
    if not path.suffix and reference in plugins.recipes:
        path = plugins.recipes[reference]
    elif not os.path.exists(path):  # unlike Path.exists, no error for a name that is too long
        raise RecipeError(
            f"There is no recipe {reference!r}, neither a file nor a recipe of a plugin."
            f"{nearest(reference, plugins.recipes)}"
        )
    source, name = read_yaml(path, RecipeError), path.stem
    if section:
        source = source.section(section, RecipeError)
        name = str(source.prefix[-1])
    return parse_recipe(source, plugins, default_name=name)


def parse_recipe(source: YamlSource, plugins: Plugins, default_name: str) -> Recipe:
    """Validate parsed YAML as a recipe.

    Raises:
        RecipeError: naming file, line, key and remedy.
    """
    file = validate(_RecipeFile, source, RecipeError)
    stages = tuple(
        _parse_stage(options, ("stages", i), source, plugins)
        for i, options in enumerate(file.stages)
    )
    gates = parse_gates(file.gates, ("gates",), source, plugins)
    for i, name in enumerate(file.measures):
        if name not in (known := plugins.references["measures"]):
            raise RecipeError(
                f"{source.where(('measures', i))}: there is no measure {name!r}."
                f"{nearest(name, known)}"
            )
    return Recipe(
        name=file.name or default_name,
        stages=stages,
        targets=file.targets,
        seed=file.seed,
        description=file.description,
        gates=gates,
        measures=file.measures,
    )


def _parse_stage(
    options: dict[str, Any], at: tuple[str | int, ...], source: YamlSource, plugins: Plugins
) -> Stage:
    technique = _parse_technique(options, at, source, plugins, besides=BESIDES)
    name = technique.name
    targets = Targets()
    if "targets" in options:
        targets = validate(Targets, source, RecipeError, (*at, "targets"))
    recovery = None
    if options.get("recovery") is not None:
        if not isinstance(options["recovery"], dict):
            raise RecipeError(
                f"{source.where((*at, 'recovery'))}: 'recovery' must be a technique with its "
                "config, such as {technique: fine_tuning, epochs: 1}."
            )
        recovery = _parse_technique(options["recovery"], (*at, "recovery"), source, plugins)
        if not recovery.recovers:
            able = sorted(name for name, kind in plugins.techniques.items() if kind.recovers)
            raise RecipeError(
                f"{source.where((*at, 'recovery', 'technique'))}: {recovery.name!r} does not train "
                f"what is there, so it recovers nothing. These do: {', '.join(able) or 'none'}."
            )
    if technique.rounds() > 1 and recovery is None:
        raise RecipeError(
            f"{source.where(at)}: {name!r} in {technique.rounds()} rounds trains between them, so "
            "the stage needs a 'recovery', such as {technique: fine_tuning, epochs: 1}."
        )
    gates = parse_gates(options.get("gates", []), (*at, "gates"), source, plugins)
    return Stage(technique, targets, recovery, gates)


def _parse_technique(
    options: dict[str, Any],
    at: tuple[str | int, ...],
    source: YamlSource,
    plugins: Plugins,
    besides: tuple[str, ...] = (),
) -> Technique[Any]:
    name = options.get("technique")
    if not isinstance(name, str):
        raise RecipeError(
            f"{source.where(at)}: a stage needs the key 'technique' with a name."
            f"{nearest('', plugins.techniques)}"
        )
    try:
        technique = plugins.technique(name)
    except PluginError as error:
        raise RecipeError(f"{source.where((*at, 'technique'))}: {error}") from None
    config = {k: v for k, v in options.items() if k not in ("technique", *besides)}
    context = {PLUGINS: plugins}
    checked = validate_mapping(technique.config_type, config, source, RecipeError, at, context)
    return technique(checked)
