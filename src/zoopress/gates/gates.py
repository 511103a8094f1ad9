"""Gates: what a stage's result must show before the chain goes on.

The gates in `BUILT_IN` are asked after every stage, then those of the recipe's targets, then those
that the recipe names. A result that fails one of the first group is broken and never stored; a
result that only fails another is kept, so that a run that asks for less need not compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from zoopress.errors import GateError, PluginError
from zoopress.interface import expected, wrong_answer
from zoopress.recipes.gate_choices import ChosenGate
from zoopress.results import GateInput

Gate = Callable[[GateInput], str | None]


def _always(gate: Gate) -> Gate:
    """Mark a gate that recipes can neither choose nor leave out."""
    vars(gate)["always_asked"] = True
    return gate


@_always
def something_touched(given: GateInput) -> str | None:
    """Fail a stage that changed nothing."""
    if given.result.touched:
        return None
    return "it changed nothing. Select other layers with 'kinds', 'include' and 'exclude'."


@_always
def claims_reached(given: GateInput) -> str | None:
    """Fail a stage that fell short of what it was asked for."""
    for claim in given.result.claims:
        least = claim.requested - abs(claim.requested) * claim.tolerance - claim.unit
        if not claim.reached >= least - 1e-12:
            return (
                f"{claim.quantity} {claim.requested:.4g} was asked for, {claim.reached:.4g} was "
                "reached. Ask for less, or select more layers."
            )
    return None


@_always
def outputs_finite(given: GateInput) -> str | None:
    """Fail a model whose outputs hold NaN or infinity."""
    odd = [each.name for each in given.result.fidelity.outputs if not each.finite]
    if given.result.finite and not odd:
        return None
    which = f"its output {odd[0]!r} holds" if odd and odd != ["output"] else "its outputs hold"
    return f"{which} NaN or infinity. Use milder settings for this stage."


@_always
def outputs_keep_form(given: GateInput) -> str | None:
    """Fail a model with an output of another shape or type than the original's."""
    changed = [each for each in given.result.fidelity.outputs if each.problem]
    if not changed:
        return None
    more = f", and {len(changed) - 1} more outputs changed" if len(changed) > 1 else ""
    return (
        f"the output {changed[0].name!r} has another form than the original's: "
        f"{changed[0].problem}{more}. 'exclude' the layers that it comes from; or, if nobody uses "
        "it, name in the card those that count, as 'data: {outputs: [logits]}'."
    )


@_always
def reloads_identically(given: GateInput) -> str | None:
    """Fail a model that computes something else once it was saved and loaded."""
    if given.result.reload_difference <= 1e-5:
        return None
    return (
        "the model computes something else after saving and loading (relative difference "
        f"{given.result.reload_difference:.2g}). This is a bug in the technique: it changed the "
        "model without recording it through the methods of zoopress.Model."
    )


@_always
def products_agree(given: GateInput) -> str | None:
    """Fail a model with a packed layer that computes otherwise than its dense weight."""
    if given.result.disagreement is None:
        return None
    return (
        f"a packed layer computes something else than its dense weight. {given.result.disagreement}"
        ". This is a bug in the packed weight; tell its author, and 'exclude' the layer till then."
    )


@_always
def bytes_shrank(given: GateInput) -> str | None:
    """Fail a stage that promised to shrink the tensor files and did not.

    They must take fewer bytes than before, and than the original's tensors as they came: a model
    that came in 16 bits is not smaller for being half of what it would take in 32.
    """
    result = given.result
    if not result.shrinks:
        return None
    if result.weight_bytes < result.weight_bytes_before:
        came = result.original_weight_bytes
        if not came or result.weight_bytes < came:
            return None
        return (
            f"the stored tensors take {result.weight_bytes:,} bytes, and the original came with "
            f"{came:,}: an earlier stage made more of them than this one saves. Use stronger "
            "settings, leave that stage out, or store in 16 bits with 'float_precision'."
        )
    return (
        f"the stored tensors did not shrink ({result.weight_bytes_before:,} bytes before, "
        f"{result.weight_bytes:,} after). Side information, or a wider type of floats, costs more "
        "than the stage saves: use stronger settings or larger groups, or leave the stage out."
    )


BUILT_IN: dict[str, Gate] = {
    "something_touched": something_touched,
    "claims_reached": claims_reached,
    "outputs_finite": outputs_finite,
    "outputs_keep_form": outputs_keep_form,
    "reloads_identically": reloads_identically,
    "products_agree": products_agree,
    "bytes_shrank": bytes_shrank,
}


@_always
def fidelity_kept(given: GateInput) -> str | None:
    """Fail a model further from the original than the targets allow."""
    fidelity, targets = given.result.fidelity, given.targets
    if targets.min_cosine is not None:
        worst = fidelity.worst(targets.min_cosine)
        if not worst.value >= targets.min_cosine:
            return (
                f"{worst.of_output} is {worst.value:.4f}, below the target of "
                f"{targets.min_cosine:.4f}{worst.reason}. Use milder settings, or lower min_cosine."
            )
    for name, bound in (
        ("label_loyalty", targets.min_label_loyalty),
        ("probability_loyalty", targets.min_probability_loyalty),
    ):
        if bound is None:
            continue
        value = getattr(fidelity, name)
        if value is None:
            return f"the target min_{name} cannot be checked: this task has no labels. Remove it."
        if not value >= bound:
            return (
                f"{name} is {value:.4f}, below the target of {bound:.4f}. Use milder settings, or "
                f"lower min_{name}."
            )
    return None


@_always
def metric_kept(given: GateInput) -> str | None:
    """Fail a model whose task metric is worse than the targets allow."""
    result, targets = given.result, given.targets
    if targets.max_metric_drop is None and targets.worst_metric is None:
        return None
    if result.metric is None or result.metric_drop is None:
        return (
            "the targets max_metric_drop and worst_metric cannot be checked: this task has no "
            "labels. Remove them, or give the card a task with a 'data: {dataset: …}'."
        )
    value = result.metrics[result.metric]
    advice = "Use milder settings, add a 'recovery' to the stage, or change the target."
    allowed = targets.max_metric_drop
    # Differences of shares that are equal on paper differ in their last bits.
    if allowed is not None and not result.metric_drop <= allowed + 1e-9:
        return (
            f"{result.metric} is {value:.4f}, {result.metric_drop:.4f} worse than the original's; "
            f"max_metric_drop allows {allowed:.4f}. {advice}"
        )
    bound = targets.worst_metric
    if bound is not None:
        worse = value > bound if result.lower_is_better else not value >= bound
        if worse or value != value:
            return f"{result.metric} is {value:.4f}, beyond worst_metric, {bound:.4f}. {advice}"
    return None


@_always
def size_reached(given: GateInput) -> str | None:
    """Fail a result larger than the targets allow."""
    size, targets = given.result.size_bytes, given.targets
    if targets.max_size_bytes is not None and size > targets.max_size_bytes:
        return (
            f"the artifact has {size:,} bytes, above the target of {targets.max_size_bytes:,}. "
            "Add a stage, use stronger settings, or raise max_size_bytes."
        )
    ratio = given.original_size_bytes / size
    if targets.min_compression_ratio is not None and ratio < targets.min_compression_ratio:
        return (
            f"the compression ratio is {ratio:.2f}, below the target of "
            f"{targets.min_compression_ratio:.2f}. Add a stage, use stronger settings, or lower "
            "min_compression_ratio."
        )
    return None


OF_TARGETS: dict[str, Gate] = {
    "fidelity_kept": fidelity_kept,
    "metric_kept": metric_kept,
    "size_reached": size_reached,
}


def check_sound(given: GateInput, position: int) -> None:
    """Ask the gates that every stored result must pass.

    Raises:
        GateError: naming stage and gate.
    """
    _ask(BUILT_IN, given, position)


def check_targets(given: GateInput, position: int, last: bool) -> None:
    """Ask the gates of the recipe's targets.

    Size is what the whole chain is for, so only the last stage is held to it.

    Raises:
        GateError: naming stage and gate.
    """
    names = [name for name in OF_TARGETS if last or name != "size_reached"]
    _ask({name: OF_TARGETS[name] for name in names}, given, position)


def check_chosen(given: GateInput, position: int, chosen: Iterable[ChosenGate]) -> None:
    """Ask the gates that a recipe names for a stage.

    Raises:
        GateError: naming stage and gate.
        PluginError: if a gate fails to judge.
    """
    _ask({gate.name: _guarded(gate) for gate in chosen}, given, position)


def _guarded(chosen: ChosenGate) -> Gate:
    """Return a gate that names itself when it fails to judge."""

    def ask(given: GateInput) -> str | None:
        try:
            answer: object = chosen.judge(given)
        except Exception as error:
            problem = f"failed to judge: {type(error).__name__}: {error}"
        else:
            wrong = wrong_answer("gates", answer)
            if wrong is None:
                return answer if isinstance(answer, str) else None
            problem = f"must return {expected('gates')}; it returned {wrong}"
        raise PluginError(
            f"The gate {chosen.name!r}{chosen.origin and f' of {chosen.origin}'} {problem}. Repair "
            "it, or leave the gate out of the recipe."
        )

    return ask


def _ask(gates: Mapping[str, Gate], given: GateInput, position: int) -> None:
    for name, gate in gates.items():
        problem = gate(given)
        if problem:
            stage = f"Stage {position} ({given.result.technique})"
            raise GateError(f"{stage} did not pass the gate {name!r}: {problem}")
