"""Robustness: what attacks, corruptions and small changes of the inputs do to both models.

Attacks are white-box: each model is attacked along its own gradients. Disturbances are equally
strong for both, and chance is seeded, so that both meet the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Any

from torch import nn

from zoopress.evaluation.computation import total
from zoopress.evaluation.corruptions import SEVERITIES, TYPO_SHARES, TYPOS, Corruptions
from zoopress.evaluation.fidelity import call
from zoopress.evaluation.judges import Judge, choose_judge
from zoopress.evaluation.macs import count_macs
from zoopress.evaluation.subject import (
    EPSILON,
    MAX_RADIUS,
    PGD_STEP,
    PGD_STEPS,
    NotApplicableError,
    Subject,
    seeded_generator,
)
from zoopress.tasks import Batch, Task

if TYPE_CHECKING:
    from zoopress.evaluation.comparison import Comparison
    from zoopress.progress import Progress

MAX_SAMPLES, MIN_SAMPLES = 128, 8
MAX_MACS = 4_000_000_000_000
"""Bound of a sample's MACs × samples × passes: the same on every machine."""
_PASSES = 220


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Disturb the inputs of both models.

    Returns:
        "samples", "score" (its name), "higher_is_better", "settings", and by "original" and
        "compressed" the score "clean", under "fgsm" and "pgd", and of each of the "corruptions"
        with "mean_corruption" and "worst_corruption"; likewise "radius", "sensitivity" and
        "largest_sensitivity", means over samples. "not_measured" says what does not apply, and why.
    """
    task, seed = comparison.task, comparison.seed
    rows = choose_samples(task, comparison.original)
    batches = [task.samples("test").batch(some) for some in rows]
    reference = [call(task, comparison.original, batch.inputs) for batch in batches]
    judge = choose_judge(task, batches, reference)
    models = {
        name: Subject(task, module, batches, judge, seed)
        for name, module in (
            ("original", comparison.original),
            ("compressed", comparison.compressed),
        )
    }
    found: dict[str, Any] = {
        "samples": sum(len(output) for output in reference),
        "score": judge.score_name,
        "higher_is_better": judge.higher_is_better,
        "settings": {
            "attacked": models["original"].attacked,
            "epsilon": EPSILON,
            "pgd_steps": PGD_STEPS,
            "pgd_step": PGD_STEP * EPSILON,
            "max_radius": MAX_RADIUS,
        },
        "clean": {name: model.clean() for name, model in models.items()},
        **_summarized(
            [
                *_corrupted(models, batches, seed, progress),
                *_misspelt(models, rows, seed, progress),
            ],
            judge,
        ),
        "not_measured": {},
    }
    for done, (name, figure) in enumerate(_FIGURES.items()):
        progress(name, 0.5 + 0.5 * done / len(_FIGURES))
        try:
            found[name] = {which: figure(model) for which, model in models.items()}
        except NotApplicableError as error:
            found["not_measured"][name] = str(error)
        except (RuntimeError, NotImplementedError) as error:  # an operation without a gradient
            found["not_measured"][name] = f"the model cannot be differentiated: {error}"
    return found


_FIGURES: Mapping[str, Callable[[Subject], float | None]] = {
    "fgsm": Subject.fgsm,
    "pgd": Subject.pgd,
    "radius": Subject.radius,
    "sensitivity": Subject.sensitivity,
    "largest_sensitivity": Subject.largest_sensitivity,
}


def choose_samples(task: Task, original: nn.Module) -> list[list[int]]:
    """Return rows of the test split, evenly spread, as many as are affordable, in batches."""
    samples = task.samples("test")
    one = samples.batch([len(samples) // 2]).inputs  # where sorted by length, a typical one
    try:
        macs = total(count_macs(task, original, one).values()).dense
    except (RuntimeError, ValueError, TypeError, AttributeError):  # it cannot be watched
        macs = sum(parameter.numel() for parameter in original.parameters())
    affordable = MAX_MACS // (_PASSES * max(1, macs))
    count = min(len(samples), MAX_SAMPLES, max(MIN_SAMPLES, affordable))
    rows = [i * len(samples) // count for i in range(count)]
    size = min(32, task.batch_size)
    return [rows[start : start + size] for start in range(0, count, size)]


def _corrupted(
    models: Mapping[str, Subject], batches: Sequence[Batch], seed: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Score models on corrupted inputs, by name and severity."""
    corruptions = Corruptions([batch.inputs for batch in batches])
    for done, name in enumerate(corruptions.names):
        progress(name, 0.4 * done / len(corruptions.names))
        for severity in SEVERITIES:
            generator = seeded_generator(seed, f"{name} {severity}")
            inputs = [corruptions.apply(name, b.inputs, severity, generator) for b in batches]
            scores = {which: model.on(inputs) for which, model in models.items()}
            yield {"name": name, "severity": severity, **scores}


def _misspelt(
    models: Mapping[str, Subject], rows: Sequence[Sequence[int]], seed: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Score models on misspelt text, where the task has text to misspell."""
    task = models["original"].task
    for done, (name, misspell) in enumerate(TYPOS.items()):
        progress(name, 0.4 + 0.1 * done / len(TYPOS))
        for severity, share in zip(SEVERITIES, TYPO_SHARES, strict=True):
            random = Random(f"{seed} {name} {severity}")
            change = partial(_with_strength, misspell, share, random)
            batches = [task.rewritten("test", some, change) for some in rows]
            inputs = [batch.inputs for batch in batches if batch is not None]
            if len(inputs) == len(rows):
                scores = {which: model.on(inputs) for which, model in models.items()}
                yield {"name": name, "severity": severity, **scores}


def _with_strength(
    misspell: Callable[[str, float, Random], str], share: float, random: Random, text: str
) -> str:
    return misspell(text, share, random)


def _summarized(rows: Sequence[dict[str, Any]], judge: Judge) -> dict[str, Any]:
    """Return the scores under each corruption, their mean, and the worst of them."""
    found: dict[str, Any] = {"corruptions": rows}
    worst = min if judge.higher_is_better else max
    for key, choose in (("mean_corruption", mean), ("worst_corruption", worst)):
        values = {which: [row[which] for row in rows] for which in ("original", "compressed")}
        found[key] = {
            which: choose(scores) if scores and None not in scores else None
            for which, scores in values.items()
        }
    return found
