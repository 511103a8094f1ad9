"""SmoothQuant: outliers move from activations, where they spoil a grid, into weights.

A channel whose activations are large is divided by a scale in the layer that makes it, most often a
normalization, and the weights that read it are multiplied: the same function, easier to round.

Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.techniques import Context


class ActivationSmoothingConfig(Config):
    """How far, and on how many inputs."""

    strength: float = Field(
        default=0.5, ge=0, le=1, description="share of the outliers that moves into weights"
    )
    samples: int = Field(default=128, ge=1, description="inputs to measure on, at most")


def smoothing_scale(activations: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return by what each channel of activations is to be divided.

    Args:
        activations: [channels], largest size of each.
        weights: [channels], largest size of the weights that read it.
        strength: 0 leaves activations alone, 1 makes all channels equally large.

    Returns:
        [channels], positive; 1 for a channel without activations or weights.

    Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
    """
    import torch

    scale = activations.double().pow(strength) / weights.double().pow(1 - strength)
    usable = scale.isfinite() & (activations > 0) & (weights > 0)
    return torch.where(usable, scale, 1.0).clamp(1e-4, 1e4).float()


class ActivationSmoothing(Technique[ActivationSmoothingConfig]):
    """Divide channels of activations by scales, and multiply the weights that read them."""

    name = "activation_smoothing"
    family = "quantization"
    config_type = ActivationSmoothingConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Change activations between layers; packed weights are left as they are."""
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find what can be scaled, and scale it."""
        import torch

        from zoopress_plugins.quantization.activations.inputs import (
            by_channel,
            inputs_told,
            some_samples,
        )
        from zoopress_plugins.quantization.activations.rescaling import (
            find_links,
            largest_read,
            scaled,
        )

        batches = some_samples(context.batches(), self.config.samples)
        if not batches:
            raise StageError(
                "There are no calibration inputs to find outliers on. Give the card "
                "'calibration_samples', or use 'weight_equalization', which needs none."
            )
        few = some_samples(batches, 2)
        context.progress("looking for channels that can be scaled")
        links, left = find_links(model, lambda: context.call(model.module, few[0]))
        if not links:
            raise StageError(f"No layer reads channels that can be scaled: {_some(left)}.")
        largest: dict[str, Tensor] = {}
        layers = {link.readers[0]: model.module.get_submodule(link.readers[0]) for link in links}

        def note(name: str, x: Tensor) -> None:
            from zoopress.models.input_grid import input_axis

            axis = input_axis(layers[name])
            assert axis is not None
            sizes = by_channel(x.float().abs().nan_to_num(0.0, 0.0, 0.0), axis).amax(1).cpu()
            largest[name] = torch.maximum(largest.get(name, sizes), sizes)

        with inputs_told(layers, note):
            for done, batch in enumerate(batches, start=1):
                context.call(model.module, batch)
                context.progress("measuring outliers", done / len(batches))
        touched: list[str] = []
        for link in links:
            weights = largest_read(model.module, link)
            activations = largest[link.readers[0]].to(weights.device)
            scale = smoothing_scale(activations, weights, self.config.strength)
            for name, values in scaled(model.module, link, scale).items():
                model.set_values(name, values)
                touched.append(name)
        notes: dict[str, Any] = {
            "scaled": {link.source: list(link.readers) for link in links},
            **({"left": left} if left else {}),
        }
        return Outcome(touched=list(dict.fromkeys(touched)), shrinks=False, notes=notes)


def _some(left: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:2]) or "none"


@hookimpl
def zoopress_techniques() -> list[type[ActivationSmoothing]]:
    """Register the technique."""
    return [ActivationSmoothing]
