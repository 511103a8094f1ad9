"""Truncated singular value decomposition: one layer becomes two thin ones.

W ≈ (U √S) (√S Vᵀ) with the largest singular values; by Eckart and Young the closest matrix of that
rank. A convolution becomes one of the same kernel with few outputs, and a 1×1 one.

Sources: Eckart & Young 1936, doi:10.1007/BF02288367; Denton et al. 2014, arXiv:1404.0736;
Zhang et al. 2015, arXiv:1411.4229, section 3.1 (convolutions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import MASKS, Claim, Effects, Kind, Outcome, Technique, WeightSelection

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


class TruncatedSvdConfig(WeightSelection):
    """Give exactly one of `parameters`, `rank` and `energy`."""

    kinds: tuple[Kind, ...] = Field(
        default=("linear", "conv"), min_length=1, description="kinds of weights"
    )
    parameters: float | None = Field(
        default=None, gt=0, lt=1, description="share of its parameters that each layer keeps"
    )
    rank: int | None = Field(default=None, ge=1, description="rank of every layer")
    energy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the squared singular values that each layer keeps",
    )

    @model_validator(mode="after")
    def _check(self) -> TruncatedSvdConfig:
        if sum(value is not None for value in (self.parameters, self.rank, self.energy)) != 1:
            raise ValueError("give exactly one of 'parameters', 'rank' and 'energy'")
        unfit = set(self.kinds) - {"linear", "conv"}
        if unfit:
            raise ValueError(f"only linear and conv weights can be factored, not {sorted(unfit)}")
        return self


def truncate(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the closest matrix of a rank.

    Args:
        matrix: [out, in].
        rank: at most min(out, in).

    Returns:
        up [out, rank] and down [rank, in], with up @ down ≈ matrix; both carry √S.
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * vh[:rank]).to(matrix.dtype)


def rank_for_energy(matrix: Tensor, energy: float) -> int:
    """Return the smallest rank that keeps a share of the squared singular values."""
    import torch

    squares = torch.linalg.svdvals(matrix.float()).square()
    kept = squares.cumsum(0) / squares.sum().clamp(min=1e-30)
    return min(int((kept < energy).sum()) + 1, len(squares))


class TruncatedSvd(Technique[TruncatedSvdConfig]):
    """Factor linear and convolution layers by truncated SVD."""

    name = "truncated_svd"
    family = "low_rank"
    config_type = TruncatedSvdConfig
    weight_by_weight = True

    def effects(self) -> Effects:
        """Require float weights; a product of factors has no mask any more."""
        return Effects(
            requires=self.config.properties(), destroys=frozenset({MASKS}), restructures=True
        )

    def refusal(self, model: Model) -> str | None:
        """Refuse a model of which no selected layer can be replaced."""
        reason = super().refusal(model)
        if reason is not None:
            return reason
        skipped = {weight.name: _unfit(weight) for weight in self.config.select(model)}
        return None if None in skipped.values() else self._none_factored(skipped)

    def apply(self, model: Model, context: Context) -> Outcome:
        """Replace each selected layer that gets smaller by two."""
        weights = self.config.select(model)
        done: dict[str, Any] = {"touched": [], "skipped": {}, "before": 0, "after": 0}
        for weight in context.track(weights, done):
            reason = _unfit(weight)
            if reason:
                done["skipped"][weight.name] = reason
                continue
            matrix = weight.matrix()
            rank = self._rank(matrix)
            size = rank * sum(matrix.shape)
            if size >= matrix.numel():
                done["skipped"][weight.name] = f"rank {rank} would not make it smaller"
                continue
            up, down = truncate(matrix, rank)
            _replace(model, weight, up, down)
            done["touched"].append(weight.path)
            done["before"] += matrix.numel()
            done["after"] += size
        if not done["touched"]:
            raise StageError(self._none_factored(done["skipped"]))
        claims = []
        if self.config.parameters is not None:
            removed = 1 - done["after"] / done["before"]
            claims = [Claim("share of parameters removed", 1 - self.config.parameters, removed)]
        return Outcome(done["touched"], claims, notes={"skipped": done["skipped"]})

    def _none_factored(self, skipped: Mapping[str, str | None]) -> str:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        return (
            f"None of the {len(skipped)} selected layers can be factored ({reasons}). Use a lower "
            "rank, share of parameters or energy, or select other layers."
        )

    def work(self, rows: int, columns: int) -> float:
        """Return what a decomposition takes."""
        return float(rows * columns * min(rows, columns))

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the factors and what LAPACK makes on the way."""
        return 8 * largest

    def _rank(self, matrix: Tensor) -> int:
        config = self.config
        if config.parameters is not None:
            return max(1, int(config.parameters * matrix.numel() / sum(matrix.shape)))
        if config.rank is not None:
            return int(min(config.rank, *matrix.shape))
        assert config.energy is not None
        return rank_for_energy(matrix, config.energy)


def _unfit(weight: Weight) -> str | None:
    """Say why a weight's layer cannot be replaced, or None."""
    from zoopress_plugins.low_rank.layers.factored import unfit

    if len(weight.locations) > 1:
        return "its weight is tied to another layer's"
    return unfit(weight.module, weight.attribute)


def _replace(model: Model, weight: Weight, up: Tensor, down: Tensor) -> None:
    module = weight.module
    bias = getattr(module, "bias", None)
    tensors = {"down.weight": down, "up.weight": up}
    layer = "factored_linear"
    if weight.kind == "conv":
        layer = "factored_conv"
        kernel = weight.parameter.shape[2:]
        tensors = {
            "down.weight": down.view(down.shape[0], -1, *kernel),
            "up.weight": up.view(*up.shape, *(1 for _ in kernel)),
        }
    if bias is not None:
        tensors["up.bias"] = bias
    model.replace(weight.path, layer, {"rank": up.shape[1]}, tensors)


@hookimpl
def zoopress_techniques() -> list[type[TruncatedSvd]]:
    """Register the technique."""
    return [TruncatedSvd]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call the layers."""
    where = "zoopress_plugins.low_rank.layers.factored"
    return {
        "factored_linear": f"{where}:FactoredLinear",
        "factored_conv": f"{where}:FactoredConv",
    }
