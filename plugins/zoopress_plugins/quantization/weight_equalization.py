"""Cross-layer equalization: channels of neighbouring layers get equal ranges, without data.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1; Meller et al. 2019, arXiv:1902.01917.
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


class WeightEqualizationConfig(Config):
    """How long."""

    rounds: int = Field(default=4, ge=1, le=100, description="how often all layers take a turn")


def equalizing_scale(giving: Tensor, reading: Tensor) -> Tensor:
    """Return by what each channel is to be divided so that both sides have one range.

    Args:
        giving: [channels], largest size of the weights that make it.
        reading: [channels], largest size of the weights that read it.

    Source: Nagel et al. 2019, arXiv:1906.04721, eq. 11.
    """
    import torch

    scale = (giving.double() / reading.double()).sqrt()
    usable = scale.isfinite() & (scale > 0)
    return torch.where(usable, scale, 1.0).clamp(1e-4, 1e4).float()


class WeightEqualization(Technique[WeightEqualizationConfig]):
    """Scale channels so that the layers before and after them have equal ranges of weights."""

    name = "weight_equalization"
    family = "quantization"
    config_type = WeightEqualizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Change activations between layers; packed weights are left as they are."""
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find what can be scaled, and scale it until ranges are equal."""
        from zoopress_plugins.quantization.activations.inputs import some_samples
        from zoopress_plugins.quantization.activations.rescaling import (
            find_links,
            largest_of,
            largest_read,
            outputs_of_run,
            scaled,
        )
        from zoopress_plugins.quantization.rate_distortion.probes import made_up

        # Of inputs only the shapes count: whether outputs stay is asked with noise as well.
        few = [made_up(each, context.generator()) for each in some_samples(context.batches(), 2)]
        if not few:
            raise StageError("There are no inputs to run the model on. Give the card 'data'.")
        links, left = find_links(model, outputs_of_run(context, model, few[0]))
        owners = {link.source: model.module.get_submodule(link.source) for link in links}
        links = [x for x in links if owners[x.source].get_parameter("weight").ndim > 1]
        if not links:
            raise StageError(
                "No two layers have channels between them that can be scaled: "
                + ("; ".join(list(left.values())[:1]) or "only normalizations can")
                + ". Fold batch normalizations first ('batch_norm_folding')."
            )
        touched: list[str] = []
        for _ in range(self.config.rounds):
            for link in links:
                giving = largest_of(model.module, link.source, reading=False)
                scale = equalizing_scale(giving, largest_read(model.module, link))
                for name, values in scaled(model.module, link, scale).items():
                    model.set_values(name, values)
                    touched.append(name)
        notes: dict[str, Any] = {
            "scaled": {link.source: list(link.readers) for link in links},
            **({"left": left} if left else {}),
        }
        return Outcome(touched=list(dict.fromkeys(touched)), shrinks=False, notes=notes)


@hookimpl
def zoopress_techniques() -> list[type[WeightEqualization]]:
    """Register the technique."""
    return [WeightEqualization]
