"""What a technique is: one class with a config, declared effects, and `apply`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import Field

from zoopress.choice import choices
from zoopress.config import Config as Config
from zoopress.errors import StageError
from zoopress.techniques.scope import EVERYTHING, Scope
from zoopress.training.loss import INPUT

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.plugins import Plugins
    from zoopress.progress import Progress
    from zoopress.statistics import Shelf, Statistics
    from zoopress.tasks import Task
    from zoopress.techniques.journal import Journal
    from zoopress.training.config import TrainingConfig
    from zoopress.training.constraints import Constraint
    from zoopress.training.result import TrainingResult
    from zoopress.training.term import Term

Family = Literal[
    "pruning", "quantization", "low_rank", "distillation", "coding", "redesign", "transfer"
]
Kind = Literal["linear", "conv", "embedding", "recurrent", "experts", "parameter", "vector"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Need = Literal["calibration", "training", "teacher"]

MASKS = "masks"
"""The property of having pruned weights whose zeros must stay zero."""


def float_weights(kind: str) -> str:
    """Name the property that weights of a kind are still floating point."""
    return f"float {kind} weights"


INITIAL_PROPERTIES = frozenset(float_weights(kind) for kind in KINDS)
"""What every model that comes from a card has."""


MATRICES: tuple[Kind, ...] = ("linear", "conv", "recurrent", "experts", "parameter")
"""Kinds that inputs are multiplied with: what most techniques work on unless told otherwise."""

ConfigT = TypeVar("ConfigT", bound=Config)


ACTIVATION_RANGES = "activation ranges"
"""The property of holding figures on activations, such as a static quantizer's ranges."""

Activations = Literal["kept", "rounded", "changed", "resized"]


@dataclass(frozen=True)
class Effects:
    """What a stage does to the properties that other stages rely on.

    Attributes:
        requires: properties its input must have.
        adds: properties its output has.
        destroys: properties its output no longer has. Destroying what an earlier stage added, such
            as its masks, is refused by the plan, since that stage would have been in vain.
        scope: which weights all this is about; those that a `WeightSelection` selects by default,
            else all.
        activations: what becomes of what flows between layers. "kept": nothing; "rounded": the same
            values up to rounding, whose ranges stay right; "changed": other values, which outdates
            `ACTIVATION_RANGES` of earlier stages; "resized": other sizes too, so that there is less
            for later stages to do.
        restructures: whether modules go or others take their places, so that names of weights are
            others afterwards.
    """

    requires: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()
    destroys: frozenset[str] = frozenset()
    scope: Scope | None = None
    activations: Activations = "changed"
    restructures: bool = False


@dataclass(frozen=True)
class Claim:
    """A figure that a stage was asked for, and what it reached; a gate compares the two."""

    quantity: str
    """What, such as "sparsity"."""
    requested: float
    """How much was asked for, at least."""
    reached: float
    """How much there is."""
    tolerance: float = 0.01
    """How far, relative to `requested`, `reached` may fall short."""
    unit: float = 0.0
    """How much further it may, by rounding to whole neurons, weights or layers alone."""


@dataclass(frozen=True)
class Outcome:
    """What a technique reports of its work on one model.

    Attributes:
        touched: names of the weights or modules that it changed.
        claims: what it was asked for and what it reached.
        shrinks: whether it promises that the stored model takes fewer bytes than before.
        notes: anything else worth reading, by name.
    """

    touched: Sequence[str]
    claims: Sequence[Claim] = ()
    shrinks: bool = True
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What a technique may use besides the model.

    Attributes:
        seed: the recipe's seed; equal seeds give equal results.
        device: where to compute.
        batches: returns calibration batches, sized for one forward pass; never test data.
        call: runs a module on one batch and returns its output tensor, without gradients.
        progress: call it with an item's name as each is finished, and with how much of the work is
            done, 0 to 1, if that is known.
        checkpoint: a folder that survives a killed run, for stages that take long.
        task: what `train` learns; it knows the data and how to judge. It gives nothing of its test
            split.
        teacher: returns the original in evaluation mode, the model of the card that is named, or
            for "input" the model as it entered the stage; never to be changed. Made once.
        recover: trains a model as the stage's `recovery` says; None if the recipe has none there.
            A technique that works in rounds calls it after each but the last; it is called once
            more when `apply` has returned.
        constrain: makes what a training holds to around each step, besides masks and codes; given
            how many steps it takes, once the weights are where they are trained.
        terms: what its trainings lower besides, whoever starts them.
        stored_bytes: returns the bytes of all files of the artifact that a model would make, given
            what the technique would report of it; the model is left as it is. None where there is
            no artifact.
        original_bytes: of the original's files.
        shelf: keeps what `statistics` has measured; without it everything is measured again.
        plugins: those of the run, which what a config chooses by name is made from; everything
            installed if None.
        journal: makes what `track` keeps a killed run's work in; None where it keeps none.
    """

    seed: int
    device: torch.device
    batches: Callable[[], Sequence[Any]]
    call: Callable[[nn.Module, Any], Tensor]
    progress: Progress
    checkpoint: Path
    task: Task | None = None
    teacher: Callable[[str | None], nn.Module] | None = None
    recover: Callable[[Model], None] | None = None
    constrain: Callable[[int], Constraint] | None = None
    terms: Sequence[Term] = ()
    stored_bytes: Callable[[Model, Outcome], int] | None = None
    original_bytes: int = 0
    shelf: Shelf | None = None
    plugins: Plugins | None = None
    journal: Callable[[], Journal] | None = None
    _trainings: Iterator[int] = field(default_factory=count, repr=False)

    @property
    def statistics(self) -> Statistics:
        """What calibration data shows of a model, measured once; see `zoopress.statistics`."""
        from zoopress.statistics import Statistics

        return Statistics(self.call, self.batches, self.task, self.progress, self.seed, self.shelf)

    def train(
        self,
        model: Model,
        config: TrainingConfig,
        terms: Sequence[Term] = (),
        task_weight: float = 1.0,
    ) -> TrainingResult:
        """Train a model in place; masks, tied weights and packed weights stay what they are.

        A run that was killed goes on from where it was, to the same weights bit for bit.

        Args:
            model: what to train; every float parameter that the config does not freeze.
            config: how; its `losses` are added, too.
            terms: what is added to the task's loss.
            task_weight: what that is multiplied by; with 0 no labels are needed.

        Raises:
            StageError: if the loss becomes NaN or infinite, or there is nothing to train.
            CardError: if the task has too few samples, or no labels where they are needed.
        """
        from zoopress.training.loop import train

        assert self.task is not None, "a stage's context has a task"
        terms = [*terms, *self.terms]
        if config.losses:
            from zoopress.techniques.teaching import chosen_terms

            terms = [*terms, *chosen_terms(self, model, config.losses)]
        return train(
            model,
            self.task,
            config,
            terms=terms,
            task_weight=task_weight,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
            # One each: a technique that trains in rounds finds those that were finished.
            checkpoint=self.checkpoint / f"training-{next(self._trainings)}",
            constrain=self.constrain,
        )

    def generator(self) -> torch.Generator:
        """Return a new random generator, seeded."""
        import torch

        return torch.Generator(device="cpu").manual_seed(self.seed)

    def track(
        self, items: Iterable[Weight], record: MutableMapping[str, Any] | None = None
    ) -> Iterable[Weight]:
        """Yield weights and report each as progress when the next is asked for.

        A run that was killed goes on where it was, if it keeps a journal: what was done to weights
        before is done to the model again, and these are not yielded.

        Args:
            items: weights, whose number is known if it is a list.
            record: plain data that the technique notes along the way, and gets back then.
        """
        total = len(items) if isinstance(items, Sized) else None
        noted: MutableMapping[str, Any] = {} if record is None else record
        journal = None if self.journal is None else self.journal()
        for done, item in enumerate(items, start=1):
            if journal is None or not journal.redo(item, noted):
                yield item
                if journal is not None:
                    journal.note(item, noted)
            self.progress(item.name, done / total if total else None)


class Technique(ABC, Generic[ConfigT]):
    """One compression technique.

    Class attributes:
        name: what recipes call it, a noun in snake_case.
        family: which family it belongs to.
        config_type: the pydantic class of its config, a subclass of `Config`.
        needs: what it needs besides the model: calibration inputs, a training split, a teacher.
        recovers: whether it trains what is there, so that it can be another stage's `recovery`.
        timed: whether `zoopress plan` can time `apply` on small models. False if that tells
            nothing: its time is that of training and of running the model.
        folds: whether weights that a module computes from others, as weight norm does, are ordinary
            ones while it works; those that it leaves alone are computed again afterwards. Asked of
            techniques that require float weights.
        weight_by_weight: whether `apply` takes one weight after another, within `Context.track`
            where that takes long, keeps little of each, and changes weights through the model's
            methods alone. Then the model may be larger than memory.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    config_type: ClassVar[type[Config]]
    needs: ClassVar[frozenset[Need]] = frozenset()
    recovers: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    weight_by_weight: ClassVar[bool] = False

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def effects(self) -> Effects:
        """Return what this stage, with its config, requires, adds and destroys."""

    @abstractmethod
    def apply(self, model: Model, context: Context) -> Outcome:
        """Compress `model` in place.

        Raises:
            StageError: if nothing in the model fits, or the work fails for a reason the user can
                act on.
        """

    def scope(self) -> Scope:
        """Return which weights its effects are about."""
        told = self.effects().scope
        if told is not None:
            return told
        return self.config.selection() if isinstance(self.config, WeightSelection) else EVERYTHING

    def refusal(self, model: Model) -> str | None:
        """Return why it can do nothing with a model of this structure, None if it may.

        Asked before anything is computed. The default looks whether a `WeightSelection` selects
        any weight.

        Args:
            model: has shapes and names; its tensors are on the meta device, without values.
        """
        if isinstance(self.config, WeightSelection):
            try:
                self.config.select(model)
            except StageError as error:
                return str(error)
        return None

    def cards(self) -> Sequence[str]:
        """Return the names of other cards whose models it learns from, but for its `losses`'."""
        return ()

    def all_cards(self) -> Sequence[str]:
        """Return the names of `cards`, and of those that losses anywhere in its config name."""
        chosen = (choice.teacher for choice in choices(self.config) if hasattr(choice, "teacher"))
        named = (name for name in (*self.cards(), *chosen) if name not in (None, INPUT))
        return tuple(dict.fromkeys(named))

    def rounds(self) -> int:
        """Return how often the stage's recovery trains: once, unless it works in rounds."""
        return 1

    def gradient_passes(self) -> float:
        """Return how often it runs each calibration sample forward and backward.

        `zoopress plan` multiplies this by the model's time; `apply` is timed without gradients.
        """
        return 0.0

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return how many samples it trains on, and how many it runs without, all repeats counted.

        `zoopress plan` multiplies these by the model's time, instead of timing `apply`.

        Args:
            training: samples in the training split.
            validation: samples in the validation split.
        """
        return 0, 0

    def work(self, rows: int, columns: int) -> float:
        """Return how much there is to compute on a weight [rows, columns], in any unit.

        `zoopress plan` times `apply` on small weights and scales by it.
        """
        return float(rows * columns)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return how much memory `apply` takes at most besides the model.

        The default is what a ranking of all weights together takes: scores, a copy, their order.

        Args:
            total: bytes of the model's weights.
            largest: bytes of the largest of them.
        """
        return 8 * total


class WeightSelection(Config):
    """Which weights a technique works on; a config inherits from it."""

    kinds: tuple[Kind, ...] = Field(
        default=("linear", "conv"), min_length=1, description="kinds of weights to work on"
    )
    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a weight's name must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a weight's name must match none"
    )

    def select(self, model: Model) -> list[Weight]:
        """Return the float weights selected.

        Raises:
            StageError: if there are none.
        """
        weights = list(model.weights(self.kinds, self.include, self.exclude))
        if not weights:
            present = sorted({weight.kind for weight in model.weights()})
            raise StageError(
                f"No float weight matches kinds {list(self.kinds)}, include {list(self.include)}, "
                f"exclude {list(self.exclude)}. This model has float weights of the kinds "
                f"{present or 'none'}, for example "
                f"{[weight.name for weight in model.weights()][:4]}."
            )
        return weights

    def fitting(self, model: Model) -> tuple[list[Weight], dict[str, str]]:
        """Return the selected weights that few bits can stand for, and why others are left.

        A technique that rounds asks for them, and tells of the others in its notes, as "left".

        Raises:
            StageError: if there are none.
        """
        from zoopress.models.fitness import unfit_for_few_bits

        weights = self.select(model)
        reasons = {weight.name: unfit_for_few_bits(weight) for weight in weights}
        left = {name: reason for name, reason in reasons.items() if reason}
        fitting = [weight for weight in weights if weight.name not in left]
        if not fitting:
            name, reason = next(iter(left.items()))
            raise StageError(
                f"None of the {len(weights)} selected weights can be rounded to few bits: of "
                f"{name!r}, {reason}. Select others with 'kinds' and 'include', or leave this "
                "stage out."
            )
        return fitting, left

    def selection(self) -> Scope:
        """Return which weights may be selected."""
        return Scope(self.kinds, self.include, self.exclude)

    def properties(self) -> frozenset[str]:
        """Return the float-weight properties of all kinds that are selected.

        `Technique.scope` narrows them to the weights that `include` and `exclude` leave.
        """
        return frozenset(float_weights(kind) for kind in self.kinds)
