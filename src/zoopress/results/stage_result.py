"""What was measured of one stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from zoopress.recipes import Targets
from zoopress.results.coverage import Coverage
from zoopress.techniques import Claim

MEANINGLESS = 0.99
"""What a constant reaches by a measure is no similarity: another measure is taken then."""


@dataclass(frozen=True)
class OutputFidelity:
    """How close one of a model's outputs is to the original's.

    Attributes:
        name: of the output; "output" if the model returns a single tensor.
        kind: "real", "complex", "integer" or "boolean".
        shape: of one sample's; of the whole batch's if samples are no axis of it.
        measure: "cosine", "concordance", "closeness" or "agreement"; see docs/evaluation.md.
        value: by that measure; 1 is equal.
        constant: what the best output that does not depend on the input would reach by it.
        centred: concordance, or agreement beyond that of a constant, by which no constant reaches
            more than 0; None if `measure` is such a one, or the original's output is constant.
        relative_error: norm of the difference ÷ that of the original's output; None of integers,
            and if the original's is zero.
        judged: whether targets and the guard on quality look at it.
        finite: whether no value is NaN or infinite that is not in the original's output.
        problem: how its form changed: it is gone, or has another shape or type; None if it did not.
    """

    name: str
    kind: str
    shape: list[int]
    measure: str
    value: float
    constant: float = 0.0
    centred: float | None = None
    relative_error: float | None = None
    judged: bool = True
    finite: bool = True
    problem: str | None = None

    def at(self, bound: float = MEANINGLESS) -> Similarity:
        """Return what a bound is compared with: a measure by which no constant would reach it."""
        if self.centred is None or self.constant < min(bound, MEANINGLESS):
            return Similarity(self.measure, self.value, self.name)
        other = "concordance" if self.measure == "cosine" else f"corrected {self.measure}"
        return Similarity(other, self.centred, self.name, self.constant)


@dataclass(frozen=True)
class Similarity:
    """How similar a model's worst output is to the original's.

    Attributes:
        measure: by which it was measured.
        value: by that measure; 1 is equal.
        output: its name.
        constant: why it is not the cosine, or the agreement: what a constant would reach by that.
    """

    measure: str
    value: float
    output: str = "output"
    constant: float | None = None

    @property
    def of_output(self) -> str:
        """The measure and whose it is, in words."""
        return self.measure if self.output == "output" else f"{self.measure} of {self.output!r}"

    def __str__(self) -> str:
        return f"{self.of_output} {self.value:.4f}"

    @property
    def usual(self) -> bool:
        """Whether it is the cosine of a model's only output."""
        return self.of_output == "cosine"

    @property
    def reason(self) -> str:
        """Why the measure is not the usual one, in words; empty if it is."""
        if self.constant is None:
            return ""
        return f" (a constant output would reach {self.constant:.4f} by the usual measure)"


@dataclass(frozen=True)
class Fidelity:
    """How close a model's outputs are to the original's on the same inputs.

    Attributes:
        samples: how many inputs were compared.
        cosine: mean over samples of the cosine similarity of the outputs. Of several outputs it is
            the smallest value, of one that has no cosine the value by its own measure. What targets
            hold against a bound is `worst(bound)`.
        label_loyalty: share of samples with the same label, None without labels.
        probability_loyalty: mean of 1 − √(Jensen–Shannon divergence, base 2), None without labels.
        outputs: of each output; empty in results of versions that looked at one alone.
        seeded: whether the original's outputs are random, and both models were given the same seed.
    """

    samples: int
    cosine: float
    label_loyalty: float | None = None
    probability_loyalty: float | None = None
    outputs: list[OutputFidelity] = field(default_factory=list)
    seeded: bool = False

    def worst(self, bound: float = MEANINGLESS) -> Similarity:
        """Return the similarity of the worst of the outputs that are judged, held to a bound."""
        judged = [each for each in self.outputs if each.judged]
        found = [each.at(bound) for each in judged]
        # The lowest word counts: a report may have been written by another hand.
        if not found or self.cosine < min(each.value for each in judged):
            return Similarity("cosine", self.cosine)
        return min(found, key=lambda each: each.value if each.value == each.value else -math.inf)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fidelity:
        """Rebuild from `dataclasses.asdict`, also after it was JSON."""
        outputs = [OutputFidelity(**each) for each in data.get("outputs", ())]
        return cls(**{**data, "outputs": outputs})


@dataclass(frozen=True)
class LayerChange:
    """What a chain has done so far to one weight of the original, of two or more axes.

    Attributes:
        name: the weight's; tied weights count once, under their first name.
        relative_error: Frobenius norm of the difference ÷ that of the original; None if nothing of
            its shape stands in its place, or the error is infinite.
        zero_share: share of its numbers that are zero, 0 to 1; None if nothing of its shape stands
            in its place.
        norm_kept: Frobenius norm ÷ that of the original, 1 for zeros that are zeros; None if
            nothing of its shape stands in its place, or it was not measured.
    """

    name: str
    relative_error: float | None
    zero_share: float | None
    norm_kept: float | None = None

    @property
    def error(self) -> float | None:
        """The relative error, infinite for an original of zeros that are none any more."""
        infinite = self.relative_error is None and self.zero_share is not None
        return math.inf if infinite else self.relative_error


@dataclass(frozen=True)
class StageResult:
    """What was measured of one stage.

    Attributes:
        technique: its name.
        config: its config, defaults included.
        touched: names of what it changed.
        shrinks: whether it promised fewer bytes.
        claims: what it was asked for and what it reached.
        weight_bytes_before: bytes of the tensor files before; of the plain tensors for stage 1.
        weight_bytes: bytes of the tensor files after.
        size_bytes: bytes of the whole artifact after.
        parameters: numbers that the network computes with, zeros included.
        pruned: how many of them are zero under a mask.
        finite: whether all outputs are finite.
        reload_difference: largest difference of outputs after saving and loading, relative to the
            largest output.
        fidelity: against the original.
        notes: what else the technique had to say.
        seconds: wall time of the technique alone.
        recovery: the technique that trained the model in this stage, and its config.
        metrics: the task's, on the whole test split; empty without labels.
        metric: name of the one that the task is judged by.
        metric_drop: how much worse that one is than the original's; negative if it is better.
        lower_is_better: whether a smaller value of it is a better one.
        layers: what was done to each weight so far; None in results of versions that did not
            measure it.
        coverage: what the stage reached; None in results of versions that did not tell.
        original_size_bytes: of all files of the original that the model uses; 0 in results of
            versions that did not tell.
        original_weight_bytes: of its tensors, in the types that they came in.
        disagreement: which packed layer computes something else than its dense weight, on its own
            inputs; None if none does.
    """

    technique: str
    config: dict[str, Any]
    touched: list[str]
    shrinks: bool
    claims: list[Claim]
    weight_bytes_before: int
    weight_bytes: int
    size_bytes: int
    parameters: int
    pruned: int
    finite: bool
    reload_difference: float
    fidelity: Fidelity
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    recovery: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metric: str | None = None
    metric_drop: float | None = None
    lower_is_better: bool = False
    layers: list[LayerChange] | None = None
    coverage: Coverage | None = None
    original_size_bytes: int = 0
    original_weight_bytes: int = 0
    disagreement: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageResult:
        """Rebuild from `as_dict`."""
        values = dict(data)
        values["claims"] = [Claim(**claim) for claim in values["claims"]]
        values["fidelity"] = Fidelity.from_dict(values["fidelity"])
        if values.get("layers") is not None:
            values["layers"] = [LayerChange(**layer) for layer in values["layers"]]
        if values.get("coverage") is not None:
            values["coverage"] = Coverage.from_dict(values["coverage"])
        return cls(**values)


@dataclass(frozen=True)
class GateInput:
    """What a gate judges: a stage's result, and the targets it is held to.

    Attributes:
        result: what was measured of the stage.
        targets: what the recipe asks of it.
        original_size_bytes: of all files of the original.
        position: which stage; 1 for the first.
        count: how many stages the recipe has.
        previous: the result of the stage before; None for the first.
    """

    result: StageResult
    targets: Targets
    original_size_bytes: int
    position: int = 1
    count: int = 1
    previous: StageResult | None = None

    @property
    def last(self) -> bool:
        """Whether the recipe ends with this stage."""
        return self.position == self.count
