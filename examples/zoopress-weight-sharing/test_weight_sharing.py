"""Weight sharing finds what k-means should, and keeps the rules of zoopress."""

from pathlib import Path

import pytest
import torch
from zoopress_weight_sharing.weight_sharing import (
    WeightSharing,
    WeightSharingConfig,
    nearest,
    share,
)

from zoopress.plugins import load_plugins
from zoopress.testing import check_technique, reload_artifact, run_chain, tiny_card


@pytest.mark.parametrize("config", [{}, {"bits": 3, "kinds": ("embedding", "recurrent", "linear")}])
def test_it_conforms(config):
    check_technique(WeightSharing(WeightSharingConfig(**config)))


def test_each_value_gets_its_nearest_centroid():
    values, centroids = torch.randn(200), torch.randn(8)
    distances = (values[:, None] - centroids).abs()
    found = distances.gather(1, nearest(values, centroids)[:, None])
    assert torch.equal(found[:, 0], distances.min(1).values)


def test_values_in_clusters_get_the_clusters_means():
    values = torch.tensor([-1.1, -0.9, 0.0, 0.0, 0.9, 1.1])
    codes, centroids = share(values, bits=2, iterations=30)
    expected = torch.tensor([-1.0, -1.0, 0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(centroids[codes].float(), expected)


def test_more_rounds_never_have_a_larger_error():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    errors = []
    for iterations in (1, 2, 5, 30):
        codes, centroids = share(values, 3, iterations)
        errors.append(float((centroids[codes] - values).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_pruned_weights_stay_zero_and_take_no_codes(tmp_path: Path):
    plugins = load_plugins()
    pruning = plugins.technique("magnitude_pruning")
    card = tiny_card("cnn", tmp_path)
    chain = [
        pruning(pruning.config_type(sparsity=0.8)),
        WeightSharing(WeightSharingConfig(bits=4)),
    ]
    dense = run_chain(chain[1:], card, tmp_path / "dense", plugins)
    pruned = run_chain(chain, card, tmp_path / "pruned", plugins)
    assert pruned.report.last.weight_bytes < 0.8 * dense.report.last.weight_bytes
    assert reload_artifact(pruned.artifact, card, plugins).pruned_count() > 0
