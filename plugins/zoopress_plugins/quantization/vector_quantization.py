"""Vector quantization: runs of weights share learned codewords.

Sources: Gong et al. 2014, arXiv:1412.6115, section 3.3 (product quantization of weights); Wu et
al. 2016, arXiv:1512.06473, section 3.3 (quantized CNN: codewords that least change the layer's
outputs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.plugins import hookimpl
from zoopress.techniques import MASKS, MATRICES, Effects, Kind, Outcome, Technique, WeightSelection
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


class VectorQuantizationConfig(WeightSelection):
    """How many codewords, and how long they are."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"), min_length=1, description="kinds of weights"
    )
    length: int = Field(
        default=2, ge=2, le=32, description="weights in a run that one code stands for"
    )
    bits: int = Field(
        default=6, ge=1, le=8, description="bits of a code: 2 to this power codewords a weight"
    )
    weighting: Literal["none", "inputs", "curvature"] = Field(
        default="none", description="what an error's square is multiplied by in k-means"
    )
    correction: bool = Field(
        default=False,
        description="whether codewords are set anew, codes as they are, to what changes each "
        "layer's outputs least on calibration inputs",
    )


def vectors_form(
    matrix: Tensor,
    bits: int,
    length: int,
    generator: torch.Generator,
    importance: Tensor | None = None,
    moments: Tensor | None = None,
) -> Form:
    """Return a matrix as codes of runs and codewords.

    Args:
        matrix: [rows, columns], float.
        bits: of a code.
        length: of a run.
        generator: of where k-means starts.
        importance: broadcasts to the matrix, what an error's square is multiplied by.
        moments: [columns, columns], of the layer's inputs, to correct codewords by.

    Raises:
        ValueError: if the matrix holds NaN or infinity.
    """
    from zoopress.coding.bits import pack_codes
    from zoopress_plugins.quantization.grids.vectors import (
        corrected_words,
        fit_words,
        into_vectors,
    )

    if not bool(matrix.isfinite().all()):
        raise ValueError("NaN and infinity have no codeword: leave this weight in floating point")
    values = matrix.float()
    costs = values.new_ones(()) if importance is None else importance.to(values)
    length = min(length, values.shape[1])
    vectors = into_vectors(values, length)
    words, codes = fit_words(
        vectors, into_vectors(costs.expand(values.shape), length), 1 << bits, generator
    )
    codes = codes.view(len(values), -1)
    if moments is not None:
        words = corrected_words(words, codes, values, moments.to(values))
    tensors = {"codes": pack_codes(codes.byte(), bits), "codewords": words.bfloat16()}
    return Form("vectors", {"bits": bits, "length": length}, tensors, bits / length)


class VectorQuantization(Technique[VectorQuantizationConfig]):
    """Let runs of weights share codewords found by k-means."""

    name = "vector_quantization"
    family = "quantization"
    config_type = VectorQuantizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave none; codewords have no zero, so masks go."""
        properties = self.config.properties()
        return Effects(requires=properties, destroys=properties | {MASKS})

    def apply(self, model: Model, context: Context) -> Outcome:
        """Fit codewords and pack the selected weights."""
        from zoopress_plugins.quantization.layer_moments import input_moments
        from zoopress_plugins.quantization.weighting import importances

        config, notes = self.config, dict[str, Any]()
        weights, left = config.fitting(model)
        importance = importances(config.weighting, model, weights, context, notes)
        moments = input_moments(model, weights, context, notes) if config.correction else None
        generator = context.generator()

        def form(weight: Weight) -> Form:
            return vectors_form(
                weight.matrix(),
                config.bits,
                config.length,
                generator,
                importance(weight),
                moments and moments(weight),
            )

        remedy = "Use fewer 'bits', which makes the codebook smaller, or leave this stage out."
        return pack_weights(model, weights, context, form, left, remedy, notes)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's vectors, costs and distances, and for what is measured."""
        measured = total if self.config.weighting != "none" else 0
        return 6 * largest + measured + (2 * total if self.config.correction else 0)


@hookimpl
def zoopress_techniques() -> list[type[VectorQuantization]]:
    """Register the technique."""
    return [VectorQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight of codewords."""
    return {"vectors": "zoopress_plugins.quantization.forms.vectors:VectorsWeight"}
