"""What a compressed model starts with follows from what its stages said and how it is stored."""

from typing import Any

import pytest

from compressed_cards import MADE
from zoopress.artifacts.manifest import Manifest, read_manifest
from zoopress.cells.start import Properties, start_of
from zoopress.plugins import Plugins
from zoopress.techniques import INITIAL_PROPERTIES, MASKS, float_weights

LEFT = {float_weights(kind) for kind in ("experts", "parameter", "vector")}


def manifest(state: str, **changes: Any) -> Manifest:
    return read_manifest(MADE / "artifacts" / state).model_copy(update=changes)


def present(start: Properties) -> set[str]:
    return start.known - start.removed.keys()


def test_a_plain_model_has_float_weights_of_every_kind_and_no_masks(plugins: Plugins) -> None:
    assert present(start_of(None, plugins)) == INITIAL_PROPERTIES


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ("cnn-masked", {*INITIAL_PROPERTIES, MASKS}),
        ("cnn-quantized", LEFT),
        ("cnn-masked-quantized", {*LEFT, MASKS}),
        ("cnn-factored", INITIAL_PROPERTIES),
        ("bert-removed", INITIAL_PROPERTIES),
        ("encoder-grid", {MASKS, float_weights("experts")}),  # made before these were a kind
    ],
)
def test_what_is_left_follows_from_the_stages(state: str, left: set[str], plugins: Plugins) -> None:
    assert present(start_of(manifest(state), plugins)) == left


def test_who_took_something_away_is_known(plugins: Plugins) -> None:
    start = start_of(manifest("cnn-masked-quantized"), plugins)
    assert [act.who for act in start.added[MASKS]] == ["the source's stage 1 (magnitude_pruning)"]
    [taker] = start.removed[float_weights("conv")]
    assert taker.who == "the source's stage 2 (weight_quantization)"


@pytest.mark.parametrize("stage", [{"technique": "unheard_of"}, {"technique": "truncated_svd"}])
def test_of_stages_that_nobody_here_knows_the_stored_masks_tell(
    stage: dict[str, Any], plugins: Plugins
) -> None:
    start = start_of(manifest("cnn-masked", lineage=[stage]), plugins)
    assert present(start) == {*INITIAL_PROPERTIES, MASKS}
    assert [act.who for act in start.added[MASKS]] == ["the card's source"]


def test_masks_that_are_not_there_are_not_believed(plugins: Plugins) -> None:
    start = start_of(manifest("cnn-masked", tensors={}), plugins)
    assert MASKS not in present(start)
    assert MASKS not in start.added


def test_what_recovers_a_stage_counts_as_well(plugins: Plugins) -> None:
    pruning = {"technique": "magnitude_pruning", "sparsity": 0.5}
    quantization = {"technique": "weight_quantization", "bits": 4}
    start = start_of(
        manifest("cnn-masked", lineage=[{**pruning, "recovery": quantization}]), plugins
    )
    [taker] = start.removed[float_weights("linear")]
    assert taker.who == "the source's stage 1 (weight_quantization)"
