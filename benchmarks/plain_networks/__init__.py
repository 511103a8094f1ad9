"""Plain networks as people bring them, to try techniques on more than one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from plain_networks import images, others, sequences, structures


@dataclass(frozen=True)
class Network:
    """A network, by the functions that build it and make its inputs.

    Attributes:
        file: the module that defines both.
        build: the name of the function that returns the network.
        inputs: the name of the function that returns a tensor, or tensors by argument.
    """

    file: ModuleType
    build: str
    inputs: str

    def module(self) -> nn.Module:
        build: Callable[[], nn.Module] = getattr(self.file, self.build)
        return build()

    def samples(self) -> Any:
        return getattr(self.file, self.inputs)()


_BUILDERS = {
    images: {
        "images": """
            resnet_18 resnet_50 resnext preactivation_resnet densenet inception mobilenet_v1
            mobilenet_v2 mobilenet_v3 efficientnet shufflenet_v1 shufflenet_v2 ghostnet squeezenet
            vgg alexnet unet_interpolating unet_transposing feature_pyramid attention_gates deeplab
            super_resolution convnext vision_transformer mlp_mixer conv_mixer repvgg
            standardized_weights involution
        """,
    },
    sequences: {
        "tokens": """
            lstm_tagger gru_tagger packed_sequences attending_decoder tied_language_model
            small_llama nano_gpt translator mixture_of_experts character_highway embedding_bag
        """,
        "signals": "temporal_convolutions temporal_convolutions_old_norm wavenet wave_separator",
        "frames": "speech_reader einsum_experts state_space fourier_mixer",
    },
    others: {
        "graphs": "graph_convolution graph_attention message_passing",
        "points": """
            point_net edge_convolution deep_set radiance_field sinusoidal_representation
        """,
        "rows": """
            kolmogorov_arnold generator styled_generator autoencoder normalizing_flow
            tabular_transformer policy_and_value hyper_network shared_steps prototypes
            maxout_and_bilinear
        """,
        "noisy_images": "diffusion",
        "small_images": """
            discriminator variational_autoencoder quantizing_autoencoder
        """,
        "visits": "factorization_machine two_towers attending_recommender",
        "slices": "volume",
    },
    structures: {
        "pictures": """
            detector capsules windows octave deforming conditional blurred modulated
            quantization_aware shuffled_upscaler
        """,
        "films": "convolved_state",
        "sounds": "latents conformer recalled",
        "words": "time_mixing quasi_recurrent",
        "records": "dense_table integrated adapted hyperbolic",
        "triplets": "siamese",
        "fields": "complex_convolutions fourier_operator",
    },
}
NETWORKS: dict[str, Network] = {
    build: Network(file, build, inputs)
    for file, groups in _BUILDERS.items()
    for inputs, builds in groups.items()
    for build in builds.split()
}
"""Every network by its name."""
