"""Make the plan of a run over cards and recipes: check, count and estimate; computes nothing.

What several cells have in common is counted where it comes first, as a run computes it once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zoopress.artifacts.card_model import manifest_of
from zoopress.artifacts.manifest import Manifest
from zoopress.cards import Card
from zoopress.cards.maker import Listing, card_maker, list_files
from zoopress.cells.cell import Cell, Original, open_original
from zoopress.cells.plan import make_plan, plan_early
from zoopress.cells.selection import Selected, Selection
from zoopress.cells.start import start_of
from zoopress.errors import ZoopressError
from zoopress.estimates.estimate import Estimate, estimate, needs_large
from zoopress.estimates.measurements import Calibration, Clock, ModelProfile
from zoopress.estimates.memory import (
    TensorSizes,
    memory_of,
    says_words,
    sizes_of,
    sizes_of_compressed,
    tensor_sizes,
)
from zoopress.estimates.zoo_plan import (
    PlannedCell,
    PlannedPublication,
    PlannedStage,
    StageState,
    ZooPlan,
    add_up,
)
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.publishing.published import last_published
from zoopress.recipes import Recipe, Stage
from zoopress.results import Report, StageResult
from zoopress.store import Entry, Store, digest

if TYPE_CHECKING:
    from torch import nn

    from zoopress.orchestration.publishing import PublishSection


@dataclass
class _Opened:
    """A cell on which a plan can be made, its files here or not."""

    card: Card
    recipe: Recipe
    listing: Listing
    cell: Cell | None
    """None without the card's files."""
    plugins: Plugins
    find: Callable[[str], Entry | None]
    """Looks a key up in the store."""
    advice: tuple[str, ...]
    """On the order of the stages."""
    manifest: Manifest | None = None
    """Of a compressed model."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each stage's result, or what tells it apart where that is not known."""
        if self.cell is not None:
            return self.cell.keys
        keys = [self.model_key]
        for stage in self.recipe.stages:
            keys.append(digest([keys[-1], stage.as_dict(), self.recipe.seed]))
        return tuple(keys[1:])

    @cached_property
    def model_key(self) -> str:
        """What measurements of the card's model are kept under."""
        if self.cell is not None:
            return self.cell.source_key
        return digest(["not here", self.card.as_dict(), self.listing.files.revision])

    @cached_property
    def missing(self) -> tuple[bool, ...]:
        """For each stage, whether its result is not in the store."""
        if self.cell is None:
            return (True,) * len(self.recipe.stages)
        return tuple(self.find(key) is None for key in self.keys)

    @cached_property
    def report(self) -> Report | None:
        """The final comparison, if it is in the store and so is what it compares."""
        if self.cell is None or self.missing[-1]:
            return None
        entry = self.find(self.cell.report_key)
        return Report.from_dict(entry.record) if entry is not None else None

    @cached_property
    def tensors(self) -> TensorSizes:
        """The sizes of the original's tensors."""
        files, sizes = self.listing.files, self.listing.sizes
        if self.manifest is not None:
            return sizes_of_compressed(self.manifest)
        if self.cell is not None:
            return tensor_sizes(files.folder, files.weights)
        maker = card_maker(self.card.scheme, self.plugins)
        shapes = maker.shapes(self.card, self.listing) if maker is not None else None
        size = sum(sizes.get(name, 0) for name in files.weights)
        if not shapes:
            return sizes_of([(size, size // 4, size // 4)])
        found = sizes_of(
            (0, math.prod(shape), shape[-1] if shape else 1) for shape in shapes.values()
        )
        return TensorSizes(size, found.numbers, found.largest, found.width)

    def bytes_of(self, names: tuple[str, ...]) -> int:
        """Return the size of some files, as far as it is known."""
        return sum(self.listing.sizes.get(name, 0) for name in names)


@dataclass
class ZooPlanner:
    """Makes plans.

    Attributes:
        store: where results are looked for, and measurements kept.
        plugins: what is registered.
        reporter: is told what is measured.
        probe: whether to measure what has not been measured on this machine.
        publish: where results would be published.
        out: results go to OUT/CARD/RECIPE.
        clock: what measurements count.
    """

    store: Store
    plugins: Plugins
    reporter: Reporter = field(default_factory=Reporter)
    probe: bool = True
    publish: PublishSection | None = None
    out: Path = Path("out")
    clock: Clock = "wall"

    def __post_init__(self) -> None:
        folder = self.store.root / "calibration"
        self.calibration = Calibration(folder, self.plugins, self.clock)
        self._cards: dict[str, tuple[Listing, Original | None] | ZoopressError] = {}
        self._outlines: dict[str, nn.Module] = {}
        self._find = cache(self.store.find)
        self._seen: set[str] = set()
        self._notes: list[str] = []

    def plan(self, selection: Selection) -> ZooPlan:
        """Check and estimate every cell; one that cannot run does not stop the others."""
        opened = [
            (card.name, recipe.name, self._try(card, recipe)) for card, recipe in selection.cells()
        ]
        if self.probe:
            self._measure([item for _, _, item in opened if isinstance(item, _Opened)])
        self._seen.clear()
        cells = tuple(
            self._cell(item)
            if isinstance(item, _Opened)
            else PlannedCell(card, recipe, problem=item)
            for card, recipe, item in opened
        )
        plan = ZooPlan(cells)
        notes = (*self.calibration.problems, *self._notes, *self._shortages(plan))
        return ZooPlan(cells, self.calibration.seconds, notes)

    def _try(self, given: Selected[Card], steps: Selected[Recipe]) -> _Opened | str:
        """Open a cell, or say why that cannot be done."""
        card, recipe = given.item, steps.item
        if card is None or recipe is None:
            return given.problem or steps.problem or "it could not be read"
        try:
            plan_early(card, recipe, self.plugins)
            listing, original = self._open(card)
            manifest = manifest_of(listing.files)
            plan = make_plan(card, recipe, start_of(manifest, self.plugins))
            cell = Cell(original, recipe, self.plugins, self.store) if original else None
            opened = _Opened(
                card, recipe, listing, cell, self.plugins, self._find, plan.advice, manifest
            )
            _ = opened.keys, opened.tensors  # what is wrong with files or data shows here
            if self.probe and cell is not None and any(opened.missing):
                from zoopress.cells.feasibility import check_feasible

                check_feasible(self._outline(cell.original), recipe, self.plugins)
        except ZoopressError as error:
            return str(error)
        return opened

    def _open(self, card: Card) -> tuple[Listing, Original | None]:
        """Find a card's files, once for all its recipes; no original if they are not all here."""
        key = digest([card.as_dict(), str(card.root)])
        if key not in self._cards:
            try:
                listing = list_files(card, self.plugins, ["others"])
                original = None if listing.absent else open_original(card, self.plugins)
                self._cards[key] = listing, original
            except ZoopressError as error:
                self._cards[key] = error
        found = self._cards[key]
        if isinstance(found, ZoopressError):
            raise found
        return found

    def _outline(self, original: Original) -> nn.Module:
        """Return a card's model without values, once for all its recipes."""
        key = digest([original.card.as_dict(), str(original.card.root)])
        if key not in self._outlines:
            self._outlines[key] = original.model.on_meta()  # imports torch
        return self._outlines[key]

    def _measure(self, opened: list[_Opened]) -> None:
        """Measure this machine, models and techniques as far as there is anything to compute."""
        busy = [item for item in opened if item.report is None]
        if not busy:
            return
        cards = {item.model_key: item.card for item in busy}
        self.calibration.measure_models(cards, self.reporter)
        stages = [
            (stage, self._large(stage, item))
            for item in busy
            if any(item.missing)
            for stage in item.recipe.stages  # those in the store, too: sizes follow from them
        ]
        self.calibration.measure_stages(stages, self.reporter)

    def _large(self, stage: Stage, item: _Opened) -> bool:
        profile = self.calibration.model(item.model_key)
        return profile is not None and needs_large(stage.technique, profile.weights)

    def _cell(self, item: _Opened) -> PlannedCell:
        """Estimate a cell; stages that cells before it compute cost it nothing."""
        states: list[StageState] = []
        for key, missing in zip(item.keys, item.missing, strict=True):
            states.append("stored" if not missing else "shared" if key in self._seen else "compute")
            self._seen.add(key)
        expected = self._estimate(item)
        others = item.bytes_of(item.listing.files.others)
        stages = tuple(
            PlannedStage(
                technique=stage.name,
                config=stage.technique.config.model_dump(mode="json", exclude_unset=True),
                state=state,
                seconds=seconds if state == "compute" else 0.0,
                store_bytes=size + others if state == "compute" else 0,
            )
            for stage, state, seconds, size in zip(
                item.recipe.stages, states, expected.stages, expected.stage_bytes, strict=True
            )
        )
        report = item.report
        start, reference, finish = expected.start, expected.reference, expected.finish
        if report is not None:
            start, finish = 0.0, 0.0
        if "compute" not in states:
            reference = 0.0
        absent = item.listing.absent
        known = all(name in item.listing.sizes for name in absent)
        return PlannedCell(
            card=item.card.name,
            recipe=item.recipe.name,
            stages=stages,
            report_stored=report is not None,
            start_seconds=start,
            reference_seconds=reference,
            finish_seconds=finish,
            seconds=add_up((start, reference, finish, *(stage.seconds for stage in stages))),
            memory_bytes=0 if report is not None else self._memory(item),
            store_bytes=sum(stage.store_bytes for stage in stages),
            result_bytes=self._result_bytes(item, expected.stage_bytes[-1] + others),
            fetch_bytes=item.bytes_of(tuple(absent)) if known else None,
            publication=self._publication(item),
            advice=item.advice,
        )

    def _estimate(self, item: _Opened) -> Estimate:
        batch_size = item.card.data.batch_size if item.card.data is not None else 1
        return estimate(
            item.recipe,
            item.tensors.bytes,
            batch_size,
            self._profile(item),
            self.calibration.machine(),
            [
                self.calibration.stage(stage, self._large(stage, item))
                for stage in item.recipe.stages
            ],
        )

    def _profile(self, item: _Opened) -> ModelProfile | None:
        return self.calibration.model(item.model_key)

    def _memory(self, item: _Opened) -> int:
        return memory_of(
            item.card,
            item.recipe,
            item.tensors,
            self.calibration.machine(),
            self._profile(item),
            item.cell is not None and says_words(item.cell.original.architecture),
        )

    def _result_bytes(self, item: _Opened, most: int) -> int:
        """Return the size of the artifact: the real one if it is in the store."""
        if item.cell is not None and not item.missing[-1]:
            entry = self._find(item.keys[-1])
            if entry is not None:
                return StageResult.from_dict(entry.record).size_bytes
        return most

    def _publication(self, item: _Opened) -> PlannedPublication | None:
        if self.publish is None:
            return None
        repo_id = self.publish.repo.format(card=item.card.name, recipe=item.recipe.name)
        if item.report is not None:
            run = self.out / item.card.name / item.recipe.name
            known = (item.report.artifact_sha256, item.listing.files.revision)
            try:
                record = last_published(run, repo_id, *known)
            except ZoopressError as error:
                self._notes.append(str(error))
                record = None
            if record is not None:
                return PlannedPublication(repo_id, "unchanged", record.url)
        return PlannedPublication(repo_id, "publish", None)

    def _shortages(self, plan: ZooPlan) -> Iterator[str]:
        """Say what the machine does not have enough of."""
        import shutil

        from zoopress.estimates.budget import machine_memory

        total, memory = plan.total(), machine_memory()
        for cell in plan.cells:
            if cell.memory_bytes > memory:
                yield (
                    f"{cell.title} may take {cell.memory_bytes / 1e9:.1f} GB of memory, and this "
                    f"machine has {memory / 1e9:.1f} GB."
                )
        folder = next(path for path in (self.store.root, *self.store.root.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if total["store_bytes"] > free:
            yield (
                f"The store may grow by {total['store_bytes'] / 1e9:.1f} GB, and the disk of "
                f"{folder} has {free / 1e9:.1f} GB left. Choose another with --store."
            )
