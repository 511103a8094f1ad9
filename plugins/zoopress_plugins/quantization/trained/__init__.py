"""What rounds weights and inputs while a model trains: one quantizer a file, on one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from zoopress_plugins.quantization.trained.quantizer import InputQuantizer, WeightQuantizer

WeightScheme = Literal[
    "learned_step",
    "dorefa",
    "scaled_sign",
    "binary_connect",
    "ternary",
    "trained_ternary",
    "ternary_connect",
    "stochastic_rounding",
    "differentiable_dynamic",
]
InputScheme = Literal["learned_step", "pact", "dorefa", "half_wave_gaussian", "sign"]
WEIGHT_SCHEMES: tuple[WeightScheme, ...] = get_args(WeightScheme)
INPUT_SCHEMES: tuple[InputScheme, ...] = get_args(InputScheme)

WEIGHT_BITS: dict[WeightScheme, tuple[int, ...]] = {
    "learned_step": (2, 3, 4, 5, 6, 7, 8),
    "dorefa": (1, 2, 3, 4, 5, 6, 7),
    "scaled_sign": (1,),
    "binary_connect": (1,),
    "ternary": (2,),
    "trained_ternary": (2,),
    "ternary_connect": (2,),
    "stochastic_rounding": (2, 3, 4, 5, 6, 7, 8),
    "differentiable_dynamic": (2, 3, 4, 5, 6, 7, 8),
}
"""The bits that a code of each may have; three levels are stored in 1.6 of their two."""


def has_zero(scheme: WeightScheme) -> bool:
    """Tell whether a pruned weight has a code."""
    return scheme not in ("scaled_sign", "binary_connect", "dorefa")


def weight_scheme(name: WeightScheme) -> type[WeightQuantizer]:
    """Return the quantizer of weights of a name."""
    from zoopress_plugins.quantization.trained.weights.binary_connect import BinaryConnect
    from zoopress_plugins.quantization.trained.weights.differentiable_dynamic import (
        DifferentiableDynamic,
    )
    from zoopress_plugins.quantization.trained.weights.dorefa import DoReFaWeights
    from zoopress_plugins.quantization.trained.weights.learned_step import LearnedStep
    from zoopress_plugins.quantization.trained.weights.scaled_sign import ScaledSign
    from zoopress_plugins.quantization.trained.weights.stochastic_rounding import StochasticRounding
    from zoopress_plugins.quantization.trained.weights.ternary import Ternary
    from zoopress_plugins.quantization.trained.weights.ternary_connect import TernaryConnect
    from zoopress_plugins.quantization.trained.weights.trained_ternary import TrainedTernary

    kinds: dict[WeightScheme, type[WeightQuantizer]] = {
        "learned_step": LearnedStep,
        "dorefa": DoReFaWeights,
        "scaled_sign": ScaledSign,
        "binary_connect": BinaryConnect,
        "ternary": Ternary,
        "trained_ternary": TrainedTernary,
        "ternary_connect": TernaryConnect,
        "stochastic_rounding": StochasticRounding,
        "differentiable_dynamic": DifferentiableDynamic,
    }
    return kinds[name]


def input_scheme(name: InputScheme) -> type[InputQuantizer]:
    """Return the quantizer of inputs of a name."""
    from zoopress_plugins.quantization.trained.inputs.dorefa import DoReFaInputs
    from zoopress_plugins.quantization.trained.inputs.half_wave_gaussian import HalfWaveGaussian
    from zoopress_plugins.quantization.trained.inputs.learned_step import LearnedInputStep
    from zoopress_plugins.quantization.trained.inputs.pact import Pact
    from zoopress_plugins.quantization.trained.inputs.sign import Sign

    kinds: dict[InputScheme, type[InputQuantizer]] = {
        "learned_step": LearnedInputStep,
        "pact": Pact,
        "dorefa": DoReFaInputs,
        "half_wave_gaussian": HalfWaveGaussian,
        "sign": Sign,
    }
    return kinds[name]
