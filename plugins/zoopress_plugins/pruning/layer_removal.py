"""Layer removal: whole blocks of a stack go, which leaves a student that a teacher can teach.

Sources: Sanh et al. 2019, DistilBERT, arXiv:1910.01108, section 3 (every other layer); Fan et al.
2019, LayerDrop, arXiv:1909.11556, section 3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Claim, Config, Effects, Outcome, Technique

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

    from zoopress.models.model import Model
    from zoopress.models.stacks import Stack
    from zoopress.techniques import Context


class LayerRemovalConfig(Config):
    """Give `layers`, `keep` or `sparsity`."""

    layers: int | None = Field(
        default=None, ge=1, description="how many layers a stack keeps, evenly spread"
    )
    keep: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="which layers a stack keeps, the first is 0"
    )
    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="share of a stack's layers to remove, evenly spread"
    )
    include: tuple[str, ...] = Field(
        default=(),
        description="shell patterns; a stack's name, such as `encoder.layer`, must match one. "
        "Without any: the longest stack, or all of that length",
    )

    @model_validator(mode="after")
    def _check(self) -> LayerRemovalConfig:
        given = [name for name in ("layers", "keep", "sparsity") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of 'layers', 'keep' and 'sparsity', not {given or 'none'}")
        if self.keep is not None:
            rising = all(a < b for a, b in pairwise(self.keep))
            if self.keep[0] < 0 or not rising:
                raise ValueError(f"'keep' must be layers from 0 on, rising: {list(self.keep)}")
        return self

    def kept(self, size: int) -> tuple[int, ...]:
        """Return which of `size` layers stay."""
        if self.keep is not None:
            return self.keep
        if self.layers is not None:
            return evenly_spread(size, min(size, self.layers))
        assert self.sparsity is not None
        return evenly_spread(size, max(1, size - round(self.sparsity * size)))


def evenly_spread(size: int, count: int) -> tuple[int, ...]:
    """Return `count` of the positions 0 to `size` − 1: the first of each of `count` equal parts.

    Half of them are every other one, from the first on.

    Source: Sanh et al. 2019, arXiv:1910.01108, section 3.
    """
    return tuple(part * size // count for part in range(count))


class LayerRemoval(Technique[LayerRemovalConfig]):
    """Remove layers."""

    name = "layer_removal"
    family = "pruning"
    config_type = LayerRemovalConfig
    needs = frozenset({"calibration"})
    timed = False

    def effects(self) -> Effects:
        """Neither require nor destroy anything: what is left stays as it was."""
        return Effects(activations="resized", restructures=True)

    def refusal(self, model: Model) -> str | None:
        """Refuse a model without lists of layers."""
        from zoopress.models.stacks import find_stacks

        try:
            self._selected({stack: {} for stack in find_stacks(model.module)})
        except StageError as error:
            return str(error)
        return None

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find the stacks, check that their layers can go, and remove them."""
        batch = context.batches()[0]
        context.progress("finding stacks of layers")
        fixed, shape = _fixed(model.module, lambda: context.call(model.module, batch))
        chosen = {stack: self._kept(stack, fixed[stack]) for stack in self._selected(fixed)}
        chosen = {stack: kept for stack, kept in chosen.items() if len(kept) < len(stack.blocks)}
        if not chosen:
            sizes = {stack.path: len(stack.blocks) for stack in self._selected(fixed)}
            raise StageError(f"There is nothing to remove: the stacks have {sizes} layers.")
        touched = []
        for stack, kept in chosen.items():
            model.keep(stack.path, kept)
            gone = sorted(set(range(len(stack.blocks))) - set(kept))
            touched += [stack.block_path(position) for position in gone]
        context.progress("running what is left")
        try:
            after = context.call(model.module, batch).shape
        except StageError as error:
            raise StageError(
                f"Without these layers the model does not run; its code relies on their number: "
                f"{error}"
            ) from error
        if after != shape:
            raise StageError(
                f"Without these layers the output's shape is {tuple(after)}, not {tuple(shape)}. "
                "Leave this stack out with 'include'."
            )
        removed = float(len(touched))
        return Outcome(
            touched=touched,
            claims=[Claim("layers removed", removed, removed)],
            notes={"kept": {stack.path: list(kept) for stack, kept in chosen.items()}},
        )

    def working_bytes(self, total: int, largest: int) -> int:
        """Return next to nothing: layers are dropped, not copied."""
        return 0

    def _selected(self, fixed: Mapping[Stack, Mapping[int, str]]) -> list[Stack]:
        """Return the stacks to work on.

        Raises:
            StageError: if there are none.
        """
        from zoopress.models.stacks import outermost

        # In a list of stages, each with layers of its own, later ones change the shape.
        able = outermost([s for s, why in fixed.items() if set(why) <= {0} or _few(why, s)])
        if self.config.include:
            found = [s for s in fixed if any(fnmatchcase(s.path, p) for p in self.config.include)]
        else:
            longest = max((len(stack.blocks) for stack in able), default=0)
            found = [stack for stack in able if len(stack.blocks) == longest]
        if not found:
            there = {stack.path: len(stack.blocks) for stack in fixed}
            reasons = Counter(reason for why in fixed.values() for reason in why.values())
            because = f" Most layers cannot go: {next(iter(reasons))}." if reasons else ""
            raise StageError(
                "No list of equal layers that can be removed"
                + (f" matches include {list(self.config.include)}" if self.config.include else "")
                + f". Lists of layers of this model: {there or 'none'}.{because}"
            )
        return found

    def _kept(self, stack: Stack, fixed: Mapping[int, str]) -> tuple[int, ...]:
        """Return the layers of a stack that stay.

        Raises:
            StageError: if one must stay that should go, or there are not so many.
        """
        size = len(stack.blocks)
        kept = self.config.kept(size)
        if kept[-1] >= size:
            raise StageError(
                f"{stack.path!r} has the layers 0 to {size - 1}, so 'keep' cannot have {kept[-1]}."
            )
        for position in sorted(fixed.keys() - set(kept)):
            must = sorted({*fixed, *kept})
            raise StageError(
                f"Layer {stack.block_path(position)!r} cannot be removed: {fixed[position]}. Keep "
                f"it, as in 'keep: {must}'."
            )
        return kept


def _fixed(
    module: nn.Module, run: Callable[[], Tensor]
) -> tuple[dict[Stack, dict[int, str]], Size]:
    """Return each stack's layers that cannot go, with the reason, and the output's shape."""
    from zoopress.models.stacks import find_stacks, watched

    fixed: dict[Stack, dict[int, str]] = {stack: {} for stack in find_stacks(module)}
    layers = {(s, position): block for s in fixed for position, block in enumerate(s.blocks)}
    ran = set()

    def look(layer: tuple[Stack, int], before: Tensor | None, after: Tensor | None) -> None:
        ran.add(layer)
        if _shape(before) != _shape(after):
            fixed[layer[0]][layer[1]] = f"of {_shape(before)} it makes {_shape(after)}"

    with watched(layers, look):
        shape = run().shape
    for stack, position in layers.keys() - ran:
        fixed[stack][position] = "it did not run on the calibration inputs"
    for stack, reasons in fixed.items():
        fixed[stack] = _unlike(stack) | reasons
    return fixed, shape


def _few(fixed: Mapping[int, str], stack: Stack) -> bool:
    return 2 * len(fixed) < len(stack.blocks)


def _unlike(stack: Stack) -> dict[int, str]:
    """Return the layers that have a tensor as no other has, such as T5's table of positions."""
    names = [{name for name, _ in block.named_parameters()} for block in stack.blocks]
    found = {}
    for position, own in enumerate(names):
        others: Collection[str] = set().union(*names[:position], *names[position + 1 :])
        if alone := sorted(own - set(others)):
            found[position] = f"no other layer has a {alone[0]!r}"
    return found


def _shape(hidden: Tensor | None) -> list[int]:
    return [] if hidden is None else list(hidden.shape)


@hookimpl
def zoopress_techniques() -> list[type[LayerRemoval]]:
    """Register the technique."""
    return [LayerRemoval]
