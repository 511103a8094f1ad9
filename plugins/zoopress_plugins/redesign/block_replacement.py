"""Block replacement: modules give way to cheaper ones that start from their weights.

Source: Howard et al. 2017, MobileNets, arXiv:1704.04861 (what is gained by such a block).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.errors import PluginError, StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import (
    MASKS,
    BlockChoice,
    Config,
    Effects,
    Outcome,
    Technique,
    float_weights,
    weights_below,
)

if TYPE_CHECKING:
    from torch import nn

    from zoopress.models.model import Model
    from zoopress.techniques import Block, Context, Cost


class BlockReplacementConfig(Config):
    """What to replace, and by what."""

    block: BlockChoice = Field(
        description="what takes their place: a name, or {name: NAME, …} with options"
    )
    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a module's path must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a module's path must match none"
    )

    def selects(self, path: str) -> bool:
        """Return whether the patterns select a module."""
        wanted = any(fnmatchcase(path, pattern) for pattern in self.include)
        return wanted and not any(fnmatchcase(path, pattern) for pattern in self.exclude)


class BlockReplacement(Technique[BlockReplacementConfig]):
    """Replace modules by blocks that cost less, started from the modules' own weights."""

    name = "block_replacement"
    family = "redesign"
    config_type = BlockReplacementConfig

    def effects(self) -> Effects:
        """Require float weights; what replaces a weight has no mask."""
        return Effects(
            requires=frozenset(map(float_weights, ("linear", "conv"))),
            destroys=self._destroyed,
            scope=weights_below(self.config.include, self.config.exclude),
            restructures=True,
        )

    @cached_property
    def _destroyed(self) -> frozenset[str]:
        """What is gone where the block stands; of one that is not installed nobody knows."""
        try:
            block: type[Block[Any]] = self.config.block.kind()
        except PluginError:
            return frozenset({MASKS})
        return frozenset({MASKS}) | block.destroys

    def refusal(self, model: Model) -> str | None:
        """Refuse a model without any module of such a path."""
        paths = (path for path, _ in model.module.named_modules() if path)
        if any(self.config.selects(path) for path in paths):
            return None
        return _none_selected(self.config)

    def apply(self, model: Model, context: Context) -> Outcome:
        """Replace each selected module that the block fits and that gets cheaper."""
        block = self.config.block.make(context.plugins)
        selected = [
            (path, module)
            for path, module in model.module.named_modules()
            if path and self.config.selects(path)
        ]
        tied = {
            place.path
            for weight in model.weights()
            if len(weight.locations) > 1
            for place in weight.locations
        }
        replaced: dict[str, dict[str, float]] = {}
        refused: dict[str, str] = {}
        for done, (path, module) in enumerate(selected, start=1):
            if any(path.startswith(f"{outer}.") for outer in replaced):
                continue  # it went with the module around it
            reason = block.refusal(module) or model.obstacle(path)
            if not reason and path in tied:
                reason = "its weight is tied to another module's"
            if not reason:
                reason = _too_dear(block.cost(module), block.cost_before(module))
            if reason:
                refused[path] = reason
                continue
            replaced[path] = _replace(model, block, path, module)
            context.progress(path, done / len(selected))
        if not replaced:
            raise StageError(_nothing_fits(block, self.config, refused))
        return Outcome(
            touched=list(replaced),
            notes={"block": block.name, "replaced": replaced, "refused": _by_reason(refused)},
        )

    def work(self, rows: int, columns: int) -> float:
        """Return what a decomposition takes."""
        return float(rows * columns * min(rows, columns))

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a block's tensors and what LAPACK makes on the way."""
        return 8 * largest


def _replace(model: Model, block: Block[Any], path: str, module: nn.Module) -> dict[str, float]:
    """Put a block in a module's place, and return what both cost."""
    before, after = block.cost_before(module), block.cost(module)
    model.replace(path, block.layer, block.arguments(module), block.tensors(module))
    return {
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "macs_before": before.macs,
        "macs_after": after.macs,
    }


def _too_dear(after: Cost, before: Cost) -> str | None:
    if after.parameters < before.parameters:
        return None
    return f"it has {before.parameters} parameters, and the block would have {after.parameters}"


def _by_reason(refused: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for path, reason in refused.items():
        reasons.setdefault(reason, []).append(path)
    return reasons


def _none_selected(config: BlockReplacementConfig) -> str:
    return (
        f"No module matches include {list(config.include)}, exclude {list(config.exclude)}. "
        "Paths are those of modules, such as 'layer1.0.conv1', without '.weight'."
    )


def _nothing_fits(
    block: Block[Any], config: BlockReplacementConfig, refused: dict[str, str]
) -> str:
    if not refused:
        return _none_selected(config)
    reasons = sorted(_by_reason(refused).items(), key=lambda item: len(item[1]))
    told = "; ".join(f"{paths[0]}: {reason}" for reason, paths in reasons[:4])
    return (
        f"The block {block.name!r} can take the place of none of the {len(refused)} selected "
        f"modules ({told}). Choose other modules with 'include', or another block or options."
    )


@hookimpl
def zoopress_techniques() -> list[type[BlockReplacement]]:
    """Register the technique."""
    return [BlockReplacement]
