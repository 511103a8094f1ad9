"""A cell of the zoo, one card × one recipe: what it starts from, and the keys of its results.

Nothing here imports torch: whether a cell has been computed is known before that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zoopress.artifacts.card_model import CardModel, find_model
from zoopress.artifacts.manifest import Base, Manifest
from zoopress.cards import Card, load_card
from zoopress.cells.plan import make_plan, plan_early
from zoopress.cells.start import start_of
from zoopress.errors import CardError
from zoopress.hub.address import parse_address
from zoopress.identity import Parts, every_stage_code, report_code, statistics_code
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage
from zoopress.sources import Architecture, SourceFiles, pull
from zoopress.store import Store, digest
from zoopress.tasks import Task, open_task

SCHEMA = 7
"""Raise it when stored results of older versions can no longer be used."""


LIBRARIES = ("zoopress", "torch", "transformers", "timm", "gguf")
"""What results depend on besides a technique's own distribution."""


@dataclass(frozen=True)
class Original:
    """A card's model as it comes: its files on disk, how to build it, and how to run it.

    It may be a compressed one; then what is made of it goes on from there.
    """

    card: Card
    model: CardModel
    task: Task

    @property
    def files(self) -> SourceFiles:
        return self.model.files

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @property
    def base(self) -> Base:
        """What artifacts say of their origin: the first original, however often it was compressed.

        The task is the card's, by which the new artifact is judged.
        """
        card, manifest = self.card, self.model.manifest
        if manifest is None:
            return Base(
                name=card.name,
                source=card.source,
                revision=self.files.revision,
                size_bytes=self.files.size_bytes(),
                task=card.task,
                base_model=card.base_model,
                license=card.license,
            )
        base = manifest.base
        known = {"task": card.task, "license": base.license or card.license}
        return base.model_copy(update=known)

    @property
    def first_original(self) -> dict[str, Any]:
        """What a report says of the model that a compressed one was first made of; empty if none.

        The stages in between are named by their techniques.
        """
        manifest = self.model.manifest
        if manifest is None:
            return {}
        base = manifest.base.model_dump(mode="json", exclude={"task"}, exclude_none=True)
        return {**base, "stages": [str(stage.get("technique")) for stage in manifest.lineage]}


def open_original(card: Card, plugins: Plugins) -> Original:
    """Find a card's files and what can build and run them.

    Raises:
        ZoopressError: if something is missing.
    """
    model = find_model(card, pull(card, plugins), plugins)
    task = open_task(card, model.files.folder, plugins)
    return Original(of_first_original(card, model.manifest), model, task)


def of_first_original(card: Card, manifest: Manifest | None) -> Card:
    """Return a card with what a compressed model says of its first original.

    That is `base_model`, and the licence where the card has none.

    Raises:
        CardError: if the card names another `base_model`.
    """
    if manifest is None:
        return card
    base, own = manifest.base, None
    if card.scheme == "hub":
        own = parse_address(card.location).repo_id
    if base.base_model and card.base_model not in (None, own, base.base_model):
        raise CardError(
            f"Card {card.name!r}: 'base_model' says {card.base_model!r}, and {card.source!r} was "
            f"compressed from {base.base_model!r}. Leave 'base_model' out."
        )
    known = {
        "base_model": base.base_model or card.base_model,
        "license": card.license or base.license,
    }
    whole = card.model_copy(update=known)
    whole._root = card.root
    return whole


@dataclass(frozen=True)
class Cell:
    """A card's model and the recipe it goes through."""

    original: Original
    recipe: Recipe
    plugins: Plugins
    store: Store

    @property
    def title(self) -> str:
        return f"{self.original.card.name} × {self.recipe.name}"

    @property
    def measures(self) -> tuple[str, ...]:
        """What the report measures: what the card asks for, and then the recipe."""
        return tuple(dict.fromkeys([*self.original.card.measures, *self.recipe.measures]))

    @cached_property
    def source_key(self) -> str:
        """The key of all that the first stage depends on."""
        card, task = self.original.card, self.original.task
        return digest(
            {
                "schema": SCHEMA,
                "versions": {name: installed_version(name) for name in LIBRARIES},
                "core": every_stage_code(),
                "model": self._model_identity(self.original),
                "task": [card.task, self._parts.registered("tasks", card.task)],
                "dataset": self._dataset_identity,
                "data": [card.data and card.data.model_dump(mode="json"), task.fingerprint()],
                "card": [card.name, card.model_class, card.base_model, card.license],
                "seed": self.recipe.seed,
            }
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each stage's result: of its input, its config and its technique's code."""
        keys = [self.source_key]
        for stage in self.recipe.stages:
            keys.append(
                digest(
                    {
                        "input": keys[-1],
                        "stage": stage.as_dict(),
                        "code": self.stage_identity(stage),
                        "learns from": [
                            self._model_identity(
                                open_original(load_card(name, self.plugins), self.plugins)
                            )
                            for each in stage.techniques
                            for name in each.all_cards()
                        ],
                    }
                )
            )
        return tuple(keys[1:])

    def stage_identity(self, stage: Stage) -> dict[str, Any]:
        """Return distribution, version and code of all that a stage runs."""
        return self._parts.stage(stage.techniques, stage.as_dict())

    def layers(self, stage: Stage) -> frozenset[str]:
        """Return which registered layers the key of a stage knows of."""
        return self._parts.layers_of(self.stage_identity(stage))

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self.plugins)

    @property
    def _dataset_identity(self) -> dict[str, Any] | None:
        data = self.original.card.data
        if data is None or data.dataset is None:
            return None
        return self._parts.registered("datasets", data.dataset.partition(":")[0])

    def _model_identity(self, original: Original) -> dict[str, Any]:
        """Return what tells a model from others: all that its weights and its code depend on."""
        card, files, architecture = original.card, original.files, original.architecture
        manifest = original.model.manifest
        return {
            "source": [
                *(card.source, card.checkpoint_key),
                self._parts.registered("sources", card.scheme),
            ],
            "revision": files.revision,
            "files": {name: self.store.hash_file(files.folder / name) for name in files.all},
            "architecture": [
                *(architecture.name, architecture.arguments, architecture.code()),
                self._parts.registered("architectures", architecture.name),
            ],
            "layers": [
                self._parts.registered("layers", name)
                for name in (manifest.uses()["layers"] if manifest is not None else [])
                if name in self.plugins.references["layers"]  # loading tells of others
            ],
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """Which order of the stages would be better, and why; empty if this one is good."""
        start = start_of(self.original.model.manifest, self.plugins)
        return make_plan(self.original.card, self.recipe, start).advice

    @property
    def measured_on(self) -> dict[str, Any]:
        """What a statistic of calibration data depends on besides the model's tensors."""
        card, task, architecture = (
            self.original.card,
            self.original.task,
            self.original.architecture,
        )
        return {
            "versions": {name: installed_version(name) for name in LIBRARIES},
            "code": statistics_code(),
            "architecture": [
                *(architecture.name, architecture.arguments, architecture.code()),
                self._parts.registered("architectures", architecture.name),
            ],
            "task": [card.task, self._parts.registered("tasks", card.task)],
            "dataset": self._dataset_identity,
            "data": [card.data and card.data.model_dump(mode="json"), task.fingerprint()],
        }

    @property
    def report_key(self) -> str:
        """The key of the final comparison with the original."""
        measures = self.measures
        found = [self._parts.registered("measures", name) for name in measures]
        return digest([self.keys[-1], "report", 4, measures, found, report_code()])

    @property
    def store_keys(self) -> tuple[str, ...]:
        """The keys of all that the store keeps of this cell."""
        return (*self.keys, self.report_key)


def open_cell(card: Card, recipe: Recipe, store: Store, plugins: Plugins) -> Cell:
    """Check that a card and a recipe fit together, and find what they start from.

    Raises:
        ZoopressError: if they do not, or something is missing.
    """
    plan_early(card, recipe, plugins)
    original = open_original(card, plugins)
    make_plan(original.card, recipe, start_of(original.model.manifest, plugins))
    return Cell(original, recipe, plugins, store)


@cache
def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "" of one that is not."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
