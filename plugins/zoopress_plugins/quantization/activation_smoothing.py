"""SmoothQuant: outliers move from activations, where they spoil a grid, into weights.

A channel whose activations are large is divided by a scale in the layer that makes it, most often a
normalization, and the weights that read it are multiplied: the same function, easier to round.
Where others read the channel too, it is divided on its way into the layer.

Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.activations.rescaling import Run


class ActivationSmoothingConfig(Config):
    """How far, where, and on how many inputs."""

    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the outliers that moves into weights; by default that with which "
        "layers err least in 8 bits, searched for each",
    )
    insert: bool = Field(
        default=True,
        description="whether inputs that no layer before can be scaled for are multiplied as they "
        "enter the layer",
    )
    samples: int = Field(default=128, ge=1, description="inputs to measure on, at most")


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
        from zoopress_plugins.quantization.activations.inputs import some_samples
        from zoopress_plugins.quantization.activations.rescaling import (
            find_links,
            outputs_of_run,
            scaled,
            scaled_readers,
        )
        from zoopress_plugins.quantization.activations.smoothing import chosen_scale, observed

        batches = some_samples(context.batches(), self.config.samples)
        if not batches:
            raise StageError(
                "There are no calibration inputs to find outliers on. Give the card "
                "'calibration_samples', or use 'weight_equalization', which needs none."
            )
        few = some_samples(batches, 2)
        run = outputs_of_run(context, model, few[0])
        context.progress("looking for channels that can be scaled")
        links, left = find_links(model, run)
        groups = [link.readers for link in links]
        if self.config.insert:
            groups += self._insertable(model, run, {n for each in groups for n in each}, left)
        if not groups:
            raise StageError(f"No layer reads channels that can be scaled: {_some(left)}.")
        linked = {link.readers: link for link in links}
        inputs = observed(
            {readers[0]: model.module.get_submodule(readers[0]) for readers in groups},
            lambda batch: context.call(model.module, batch),
            batches,
            lambda done: context.progress("measuring outliers", done),
        )
        touched: dict[str, None] = {}
        scaled_by: dict[str, list[str]] = {}
        inserted: list[str] = []
        strengths: dict[str, float] = {}
        for done, readers in enumerate(groups):
            context.progress(f"scaling what enters {readers[0]}", done / len(groups))
            seen = inputs.get(readers[0])
            if seen is None:
                left |= dict.fromkeys(readers, "no calibration input reaches it")
                continue
            layers = [model.module.get_submodule(name) for name in readers]
            strength, scale = chosen_scale(layers, seen, self.config.strength)
            strengths[readers[0]] = strength
            if bool((scale == 1).all()):
                left |= dict.fromkeys(readers, "it errs least with channels as they are")
                continue
            link = linked.get(readers)
            if link is not None:
                values = scaled(model.module, link, scale)
                scaled_by[link.source] = list(readers)
            else:
                values = scaled_readers(model.module, readers, scale)
                for name in readers:
                    model.scale_input(name, 1 / scale)
                    left.pop(name, None)
                inserted += readers
            for name, tensor in values.items():
                model.set_values(name, tensor)
            touched |= dict.fromkeys([*values, *(readers if link is None else ())])
        notes: dict[str, Any] = {
            "scaled": scaled_by,
            **({"inserted": inserted} if inserted else {}),
            "strength": strengths,
            **({"left": left} if left else {}),
        }
        return Outcome(touched=list(touched), shrinks=False, notes=notes)

    def _insertable(
        self, model: Model, run: Run, taken: set[str], left: dict[str, str]
    ) -> list[tuple[str, ...]]:
        """Return groups of layers whose inputs can be multiplied; say why of the others."""
        from zoopress.models.input_scale import no_input_scale
        from zoopress_plugins.quantization.activations.rescaling import (
            read_together,
            reads_all_channels,
            scale_is_undone,
        )

        found: list[tuple[str, ...]] = []
        for group in read_together(model.module, run):
            readers = []
            for name in group:
                layer = model.module.get_submodule(name)
                reason = no_input_scale(layer)
                if reason is None and not reads_all_channels(layer):
                    reason = "its groups have a step for each channel already"
                if reason is None and not scale_is_undone(model, name, run):
                    reason = "something else reads its weight"
                if name not in taken and reason is None:
                    readers.append(name)
                elif reason is not None:
                    left[name] = reason
            if readers:
                found.append(tuple(readers))
        return found


def _some(left: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:2]) or "none"


@hookimpl
def zoopress_techniques() -> list[type[ActivationSmoothing]]:
    """Register the technique."""
    return [ActivationSmoothing]
