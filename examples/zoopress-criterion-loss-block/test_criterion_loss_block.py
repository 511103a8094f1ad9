"""The criterion, the loss and the block do what they say, and keep the rules of zoopress."""

import pytest
import torch
from torch import nn
from zoopress_criterion_loss_block.attention_maps import (
    AttentionMaps,
    AttentionMapsConfig,
    attention,
)
from zoopress_criterion_loss_block.filter_entropy import (
    FilterEntropy,
    FilterEntropyConfig,
    row_entropies,
)
from zoopress_criterion_loss_block.spatially_separable import (
    SpatiallySeparable,
    SpatiallySeparableConfig,
)
from zoopress_criterion_loss_block.spatially_separable_layer import (
    SpatiallySeparable as Layer,
)

from zoopress.testing import check_block, check_criterion, check_loss


def test_the_criterion_conforms():
    check_criterion(FilterEntropy(FilterEntropyConfig(bins=8)))


def test_the_loss_conforms():
    check_loss(AttentionMaps(AttentionMapsConfig(layers=(("3", "3"),))))


def test_the_block_conforms():
    check_block(SpatiallySeparable(SpatiallySeparableConfig(rank=9)))


def test_entropy_counts_how_evenly_values_are_spread():
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    assert row_entropies(values, 4).tolist() == [2.0, 1.0, 0.0]


def test_attention_does_not_depend_on_the_number_of_channels_or_their_size():
    features = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(attention(features), attention(7 * features.repeat(1, 2, 1, 1)))


@pytest.mark.parametrize("bias", [True, False])
def test_at_full_rank_the_block_is_the_convolution(bias):
    conv = nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias)
    block = SpatiallySeparable(SpatiallySeparableConfig(rank=9))
    layer = Layer.from_module(conv, 9)
    layer.load_state_dict(block.tensors(conv))
    x = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)
