"""Compute what the store does not have: one stage, or the final evaluation."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact, save_artifact
from zoopress.artifacts.card_model import StageInput
from zoopress.artifacts.manifest import MANIFEST, Manifest, size_bytes
from zoopress.cards import load_card
from zoopress.cells.cell import LIBRARIES, Cell, installed_version, open_original
from zoopress.cells.feasibility import check_feasible
from zoopress.cells.save import save_original
from zoopress.errors import SourceError, StageError
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.coverage import coverage, parts_of
from zoopress.evaluation.evaluate import evaluate
from zoopress.evaluation.fidelity import Run, call, call_observed, compare_runs, run_all
from zoopress.evaluation.latency import measure_latency
from zoopress.evaluation.layer_changes import layer_changes
from zoopress.evaluation.machine import describe_machine
from zoopress.evaluation.packed_products import products_disagree
from zoopress.evaluation.repeatability import (
    SAME,
    check_rebuilt,
    difference,
    plain_values,
)
from zoopress.evaluation.sensitivity import measure_layers, stored_bytes
from zoopress.gates import check_sound
from zoopress.models.caches import caches_forgotten
from zoopress.models.edits import AnyEdit, layers_of
from zoopress.models.model import Model
from zoopress.models.on_disk import on_disk, pieces
from zoopress.models.packing import packed_weights, unpack
from zoopress.observers.watch import Observers
from zoopress.pipeline.original import run_original
from zoopress.progress import Progress, Reporter
from zoopress.recipes import Stage
from zoopress.results import GateInput, Report, StageResult
from zoopress.sources import Architecture
from zoopress.statistics import Shelf
from zoopress.store import Entry, digest, file_digest
from zoopress.tasks import without_test
from zoopress.techniques import Context, Outcome, applied
from zoopress.techniques.journal import Journal
from zoopress.training.loss import INPUT

_WAITING = "another run is measuring {}; waiting for it"
_OF_THE_ORIGINAL = frozenset({"original", "reference"})


class Workbench:
    """Holds what the stages of one run share, each made when first needed.

    Args:
        cell: what is worked on.
        reporter: where progress goes.
        like: another one, whose original is used again if it is the same.
    """

    def __init__(self, cell: Cell, reporter: Reporter, like: Workbench | None = None) -> None:
        self.cell = cell
        if like is not None and like.cell.source_key == cell.source_key:
            vars(self).update({k: v for k, v in vars(like).items() if k in _OF_THE_ORIGINAL})
            origin, mine = like.cell.original.architecture, cell.original.architecture
            mine.came_as, mine.unused_bytes = origin.came_as, origin.unused_bytes
        self.recipe, self.plugins, self.store = cell.recipe, cell.plugins, cell.store
        self.card, self.files = cell.original.card, cell.original.files
        self.architecture, self.task = cell.original.architecture, cell.original.task
        self.reporter = reporter
        self._teachers: dict[str, nn.Module] = {}
        self._built_without_values: dict[str, Any] = {}

    @cached_property
    def feasible(self) -> bool:
        """Whether every stage finds something to do in the model.

        Raises:
            StageError: naming the first stage that would not.
            SourceError: if the model cannot be built.
        """
        skeleton = self.cell.original.model.on_meta()
        check_feasible(skeleton, self.recipe, self.plugins)
        self._built_without_values = dict(plain_values(skeleton, buffers=True))
        return True

    def run_stage(self, position: int, previous: Entry | None) -> Entry:
        """Apply a technique to the previous result and store what comes out.

        Args:
            position: which stage; 1 for the first.
            previous: the stored result of the stage before, None for the first.

        Raises:
            StageError: if the technique cannot do its work.
            GateError: if the result is not sound; it is not stored then.
        """
        stage, key = self.recipe.stages[position - 1], self.cell.keys[position - 1]
        _ = self.feasible, self.reference  # said before hours of work, not by the stage itself
        waiting = f"{stage.name}: another run is computing this stage; waiting for it"
        with self.store.claim(key, lambda: self.reporter.line(waiting)) as claim:
            if claim.entry is not None:
                return claim.entry
            title = f"stage {position}/{len(self.recipe.stages)}  {stage.name}"
            with self.reporter.step(title, closing_line=False) as progress:
                before = self._input(previous)
                if previous is None:
                    self._check_again(claim.staging, before)
                model, edits = before.model, len(before.model.edits)
                parts = parts_of(model)
                told = {"technique": stage.name, "position": position}
                observers = Observers(self.plugins, self.reporter.warn)
                observers.tell("zoopress_before_stage", **told, key=key)
                save = partial(self._save, stage, before)
                torch.manual_seed(self.recipe.seed)
                start = time.perf_counter()
                try:
                    trial = partial(_trial_bytes, save, claim.staging / "trial")
                    teacher = partial(self._teacher, lambda: self._input(previous).model.module)
                    outcome = self._apply(stage, model, progress, claim.checkpoint, trial, teacher)
                except StageError as error:
                    raise StageError(f"Stage {position} ({stage.name}): {error}") from error
                finally:
                    self._teachers.pop(INPUT, None)
                seconds = time.perf_counter() - start
                self._check_named(stage, position, model.edits[edits:])
                for claim_made in outcome.claims:
                    if not math.isfinite(claim_made.reached):
                        raise StageError(
                            f"Stage {position} ({stage.name}) claims {claim_made.quantity} "
                            f"{claim_made.reached}; this is a bug in the technique."
                        )

                progress("evaluating")
                run = run_all(self.task, model.module, progress)
                fidelity = compare_runs(self.task, self.reference, run, self.original)
                metrics = self.task.metrics(run.statistics) if run.finite else {}
                progress("saving")
                artifact = claim.staging / "artifact"
                manifest = save(artifact, model, outcome)
                result = StageResult(
                    technique=stage.name,
                    config=stage.technique.config.model_dump(mode="json"),
                    touched=list(outcome.touched),
                    shrinks=outcome.shrinks,
                    claims=list(outcome.claims),
                    weight_bytes_before=before.weight_bytes,
                    weight_bytes=manifest.weight_bytes(),
                    size_bytes=size_bytes(artifact, manifest),
                    parameters=model.parameter_count(),
                    pruned=model.pruned_count(),
                    finite=run.finite,
                    reload_difference=self._reload_difference(artifact, model, run),
                    fidelity=fidelity,
                    notes=outcome.notes,
                    seconds=seconds,
                    recovery=stage.as_dict().get("recovery"),
                    metrics=metrics,
                    metric=self.task.metric if metrics else None,
                    metric_drop=self._metric_drop(metrics),
                    lower_is_better=not self.task.higher_is_better,
                    original_size_bytes=self._original_size_bytes,
                    original_weight_bytes=self._original_weight_bytes,
                    layers=layer_changes(self.original, model, self._edits_before),
                    coverage=coverage(parts, model, outcome, stage.technique.config),
                    disagreement=products_disagree(self.task, model.module),
                )
                if not result.reload_difference <= SAME and math.isfinite(fidelity.cosine):
                    # It is the technique's fault only if the original is the same again.
                    self._check_again(claim.staging, self._input(None), thorough=True)
            given = GateInput(
                result,
                self.recipe.targets_of(position),
                self._original_size_bytes,
                position,
                len(self.recipe.stages),
                None if previous is None else StageResult.from_dict(previous.record),
            )
            observers.tell("zoopress_after_stage", **told, result=given)
            check_sound(given, position)
            return claim.commit(result.as_dict())

    def evaluate(
        self,
        last: Entry,
        results: Sequence[StageResult],
        keep: bool = True,
        beside: Sequence[str] = (),
    ) -> Report:
        """Compare the final model with the original, and store the report.

        Args:
            last: the result of the last stage.
            results: what each stage gained and cost.
            keep: False if it shall be measured again later, and so is not stored.
            beside: what runs on this machine meanwhile; the report says so.
        """
        with self.store.claim(self.cell.report_key) as claim:
            if claim.entry is not None:
                return Report.from_dict(claim.entry.record)
            model, architecture, manifest = self._load(last.artifact)
            stored = stored_bytes(
                last.artifact, manifest, model.tensors(), architecture.stored_name
            )
            with self.reporter.step("running the compressed model") as progress:
                run = run_all(self.task, model.module, progress)
            kernels = unpack(model.module, "auto")  # as users get it
            with self.reporter.step("measuring latency") as progress:
                latency = measure_latency(
                    self.task,
                    self.original,
                    model.module,
                    sorted({1, min(32, self.task.data.batch_size)}),
                    progress=progress,
                )
            with self.reporter.step("measuring the sensitivity of layers") as progress:
                layers = measure_layers(
                    *(self.task, self._dense_original(), model, stored, progress),
                    since=self._edits_before,
                )
            comparison = Comparison(
                self.task,
                self.original,
                model,
                self.reference,
                run,
                last.artifact,
                self.plugins,
                self.recipe.seed,
            )
            evaluation = evaluate(comparison, self.cell.measures, self.reporter)
            measured = sum(layer.sensitivity is not None for layer in layers)
            if measured < len(layers):
                self.reporter.line(f"sensitivity: {measured} of {len(layers)} weights measured")
            report = Report(
                card=self.card.as_dict(),
                recipe=self.recipe.as_dict(),
                revision=self.files.revision,
                original_size_bytes=results[-1].original_size_bytes,
                original_weight_bytes=self._original_file_bytes,
                original_parameters=self._original_parameters,
                stages=list(results),
                latency=latency,
                kernels=kernels,
                loads_as={
                    **manifest.loads_as(),
                    "by_library": architecture.library_opens(manifest),
                },
                artifact_sha256=file_digest(last.artifact / MANIFEST),
                machine={**describe_machine(), **({"beside": list(beside)} if beside else {})},
                made_with={name: v for name in LIBRARIES if (v := installed_version(name))},
                layers=layers,
                evaluation=evaluation,
                first_original=self.cell.original.first_original,
            )
            if keep:
                claim.commit(report.as_dict())
            return report

    @cached_property
    def original(self) -> nn.Module:
        """The card's model as it comes.

        Raises:
            SourceError: if it cannot be loaded, or holds NaN or infinity.
        """
        module = self.cell.original.model.load()
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith(("running_mean", "running_var")) or isinstance(tensor, nn.Parameter):
                bad = _not_finite(tensor) if tensor.is_floating_point() else 0
                if bad:
                    raise SourceError(
                        f"{self.card.source}: tensor {name!r} holds {bad} values that are NaN or "
                        "infinite. Such a model cannot be compressed; get an undamaged copy."
                    )
        return module

    def _dense_original(self) -> nn.Module:
        """Return the original with every weight as a plain parameter, so that each is compared."""
        if not packed_weights(self.original):
            return self.original
        return self.cell.original.model.load_dense()

    def _save(
        self, stage: Stage, before: StageInput, folder: Path, model: Model, outcome: Outcome
    ) -> Manifest:
        """Save what a stage made of its input into a new folder."""
        origin = self.plugins.technique_origin(stage.name)
        item = {
            **stage.as_dict(),
            "distribution": origin.distribution,
            "version": origin.version,
            "seed": self.recipe.seed,
            "touched": len(outcome.touched),
            "claims": [
                {key: value for key, value in asdict(claim).items() if key != "unit" or value}
                for claim in outcome.claims
            ],
        }
        folder.mkdir()
        lineage = [*before.lineage, item]
        base = self.cell.original.base
        if base.size_bytes == self.files.size_bytes():  # what the first of all came with
            base = base.model_copy(update={"size_bytes": self._original_size_bytes})
        return save_artifact(
            *(folder, model, before.architecture, base, before.others, lineage),
            plugins=self.plugins,
        )

    def _check_named(self, stage: Stage, position: int, edits: Sequence[AnyEdit]) -> None:
        """Refuse layers that the stage's key does not know: their code could change unseen."""
        if unnamed := sorted(set(layers_of(edits)) - self.cell.layers(stage)):
            raise StageError(
                f"Stage {position} ({stage.name}) used the layer {unnamed[0]!r}, whose name its "
                "code puts together. Results would not be computed anew when that layer's code "
                "changes. Spell the name as one string in the technique's module."
            )

    def _apply(
        self,
        stage: Stage,
        model: Model,
        progress: Progress,
        checkpoint: Path,
        stored_bytes: Callable[[Model, Outcome], int],
        teacher: Callable[[str | None], nn.Module],
    ) -> Outcome:
        """Let a stage's technique change a model, and its recovery train it."""
        context = Context(
            seed=self.recipe.seed,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            batches=lambda: self.task.batches("calibration"),
            call=lambda module, batch: call(self.task, module, batch),
            progress=progress,
            checkpoint=checkpoint,
            task=without_test(self.task),
            teacher=teacher,
            stored_bytes=stored_bytes,
            original_bytes=self._original_size_bytes,
            shelf=self.shelf,
            plugins=self.plugins,
            journal=_journals(stage, model, checkpoint),
        )
        recovery = stage.recovery
        if recovery is None:
            with caches_forgotten(model.module):
                return applied(stage.technique, model, context)
        recovered: list[Outcome] = []
        context.recover = lambda model: recovered.append(applied(recovery, model, context))
        with caches_forgotten(model.module):
            outcome = applied(stage.technique, model, context)
            context.recover(model)
        return replace(
            outcome,
            claims=[*outcome.claims, *(claim for each in recovered for claim in each.claims)],
            notes={**outcome.notes, "recovery": [each.notes for each in recovered]},
        )

    def _teacher(self, load: Callable[[], nn.Module], name: str | None = None) -> nn.Module:
        """Return whom a stage learns from: what `load` gives for the stage's input.

        Raises:
            ZoopressError: if it cannot be loaded.
        """
        if name != INPUT:
            return self.teacher(name)
        # Loaded anew, and only if asked for: the technique changes the other one in place.
        if INPUT not in self._teachers:
            self._teachers[INPUT] = load().eval()
        return self._teachers[INPUT]

    def teacher(self, card: str | None = None) -> nn.Module:
        """Return the original, or the original of another card, to learn from.

        Raises:
            ZoopressError: if it cannot be loaded.
        """
        if card is None:
            return self.original
        if card not in self._teachers:
            other = open_original(load_card(card, self.plugins), self.plugins)
            self._teachers[card] = other.model.load()
        return self._teachers[card]

    @cached_property
    def shelf(self) -> Shelf:
        """Where what calibration data shows is kept, for all stages and runs."""
        identity = digest(self.cell.measured_on)
        return Shelf(identity, self.store, lambda name: self.reporter.line(_WAITING.format(name)))

    def _metric_drop(self, metrics: Mapping[str, float]) -> float | None:
        """Return how much worse the task's metric is than the original's."""
        name = self.task.metric
        if name is None or name not in metrics:
            return None
        drop = self.task.metrics(self.reference.statistics)[name] - metrics[name]
        return drop if self.task.higher_is_better else -drop

    @cached_property
    def reference(self) -> Run:
        """What the original makes of the test split.

        Raises:
            SourceError: if that is not finite, or something else each time.
        """
        return run_original(self.task, self.original, self.reporter)

    def _check_again(self, folder: Path, again: StageInput, thorough: bool = False) -> None:
        """Ask whether the original is the same model when it is built anew, or saved and loaded.

        Raises:
            SourceError: if it is not, with the cause.
        """

        def stored() -> nn.Module:
            return self._load(save_original(self.cell.original, self.plugins, folder / "original"))[
                0
            ].module

        check_rebuilt(
            self.task,
            again.model.module,
            stored,
            self._built_without_values,
            self.original,
            self.reference,
            thorough,
        )

    @property
    def _edits_before(self) -> int:
        """How many edits of the architecture the card's model comes with."""
        manifest = self.cell.original.model.manifest
        return 0 if manifest is None else len(manifest.edits)

    @cached_property
    def _original_size_bytes(self) -> int:
        """Of all of the original's files, but for what the model does not use."""
        _ = self.original  # loading tells what that is
        return self.cell.original.model.size_bytes()

    @cached_property
    def _original_weight_bytes(self) -> int:
        """Of the original's tensors, in the types that they came in."""
        return self.cell.original.model.tensor_bytes(Model(self.original))

    @property
    def _original_file_bytes(self) -> int:
        """Of the original's tensor files, but for what the model does not use."""
        unused = self.files.size_bytes() - self._original_size_bytes
        return sum((self.files.folder / n).stat().st_size for n in self.files.weights) - unused

    @property
    def _original_parameters(self) -> int:
        return Model(self.original).parameter_count()

    def _input(self, previous: Entry | None) -> StageInput:
        """Return what a stage starts from."""
        if previous is not None:
            model, architecture, manifest = self._load(previous.artifact)
            names = manifest.files.keys() - set(manifest.weights)
            others = {name: previous.artifact / name for name in sorted(names)}
            size = manifest.weight_bytes()
            return StageInput(model, architecture, others, manifest.lineage, size)
        _ = self.reference  # before the techniques change anything, and to fail early
        return self.cell.original.model.open()

    def _load(self, artifact: Path) -> tuple[Model, Architecture, Manifest]:
        factory = getattr(self.architecture, "factory", None)
        # Found through the store, which has just compared every file with its SHA-256.
        return load_artifact(artifact, self.plugins, factory, verify=False)

    def _reload_difference(self, artifact: Path, model: Model, run: Run) -> float:
        """Return how far the saved model's outputs are from those of the one in memory."""
        batch = self.task.batches("test")[0]
        reloaded, _, _ = self._load(artifact)
        if reloaded.masks.keys() != model.masks.keys() or any(
            not torch.equal(mask, model.masks[name]) for name, mask in reloaded.masks.items()
        ):
            return float("inf")
        return difference(run.observed[0], call_observed(self.task, reloaded.module, batch))


def _journals(stage: Stage, model: Model, folder: Path) -> Callable[[], Journal] | None:
    """Return what makes a journal for each time that a stage goes through its weights.

    It takes the time to write all of the result once more, so models that are kept in memory, of
    which little work is lost, have none.
    """
    if on_disk() is None or not stage.technique.weight_by_weight:
        return None
    numbers = count()
    return lambda: Journal(model, folder / f"weights-{next(numbers)}")


def _not_finite(tensor: Tensor) -> int:
    return sum(int((~piece.isfinite()).sum()) for piece in pieces(tensor))


def _trial_bytes(
    save: Callable[[Path, Model, Outcome], Manifest], folder: Path, model: Model, outcome: Outcome
) -> int:
    """Return the bytes of all files that a model takes, and leave none."""
    try:
        return size_bytes(folder, save(folder, model, outcome))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
