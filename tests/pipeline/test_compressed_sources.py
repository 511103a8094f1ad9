"""A result is a source: compressed models in every state go on, teach, and are published."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import digits_reader
from compressed_cards import MADE, OUTPUTS, STATES, card_of, outputs_of
from digits_reader import digits_card, press
from hub_server.fixtures import HubFixture
from zoopress.artifacts.manifest import Manifest, read_manifest
from zoopress.cards import Card
from zoopress.cells.cell import open_cell, open_original
from zoopress.errors import GateError, PlanError
from zoopress.hub.client import Hub
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.pipeline.artifact_evaluation import evaluate_artifact
from zoopress.pipeline.compress import Result, compress
from zoopress.pipeline.workbench import Workbench
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.publishing.lineage import find_lineage
from zoopress.publishing.publish import PushOptions, push
from zoopress.publishing.release import open_release, refuse_low_quality
from zoopress.recipes import Recipe, load_recipe
from zoopress.store import Store
from zoopress.testing import reload_artifact

pytestmark = pytest.mark.usefixtures("brief_evaluation")

QUANTIZED = {"technique": "weight_quantization", "bits": 8}
PRUNED = {"technique": "magnitude_pruning", "sparsity": 0.7}
CODED = {"technique": "entropy_coding"}
OTHER_CODER = {"technique": "entropy_coding", "coder": "huffman"}
NEXT: dict[str, dict[str, Any]] = {
    "bert-half": QUANTIZED,
    "bert-quantized": OTHER_CODER,
    "bert-removed": PRUNED,
    "cnn-codebook": CODED,
    "cnn-coded": QUANTIZED,
    "cnn-factored": PRUNED,
    "cnn-folded": QUANTIZED,
    "cnn-grid": OTHER_CODER,
    "cnn-half": {"technique": "neuron_pruning", "sparsity": 0.2},
    "cnn-lattice": OTHER_CODER,
    "cnn-masked": PRUNED,
    "cnn-masked-quantized": CODED,
    "cnn-neurons": {"technique": "truncated_svd", "parameters": 0.8},
    "cnn-quantized": CODED,
    "cnn-three_bits": CODED,
    "encoder-grid": OTHER_CODER,
    "encoder-removed": QUANTIZED,
    "lstm-everything": OTHER_CODER,
    "lstm-masked": QUANTIZED,
}
"""What still can be done to each."""
PACKED = ["bert-quantized", "cnn-codebook", "cnn-grid", "cnn-lattice", "cnn-quantized"]


def recipe_of(folder: Path, *stages: dict[str, Any], name: str = "further") -> Recipe:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"stages": list(stages)}))
    return load_recipe(str(path), load_plugins())


def artifact(state: str) -> Path:
    return MADE / "artifacts" / state


def techniques(manifest: Manifest) -> list[Any]:
    return [stage["technique"] for stage in manifest.lineage]


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Any:
    """Return a function that compresses a state's model further, once for all tests."""

    @cache
    def run(state: str) -> Result:
        folder = tmp_path_factory.mktemp(state)
        recipe, store = recipe_of(folder, NEXT[state]), Store(folder / "store")
        return compress(card_of(state, folder), recipe, folder / "out", store, plugins)

    return run


@pytest.mark.parametrize("state", STATES)
def test_a_card_of_a_compressed_model_has_that_model(
    state: str, tmp_path: Path, plugins: Plugins
) -> None:
    original = open_original(card_of(state, tmp_path), plugins)
    module = original.model.load()
    torch.testing.assert_close(outputs_of(state, module), OUTPUTS[state], rtol=1e-2, atol=1e-3)
    started = original.model.open()
    before = read_manifest(artifact(state))
    assert started.lineage == before.lineage
    assert started.model.edits == before.edits
    masked = any(entry.form in ("masked", "zeros") for entry in before.tensors.values())
    assert bool(started.model.masks) == masked


@pytest.mark.parametrize("state", STATES)
def test_it_is_compressed_further(state: str, further: Any, plugins: Plugins) -> None:
    result: Result = further(state)
    before, after = read_manifest(artifact(state)), read_manifest(result.artifact)
    assert techniques(after) == [*techniques(before), NEXT[state]["technique"]]
    assert after.lineage[: len(before.lineage)] == before.lineage
    assert after.base == before.base
    report = result.report
    assert report.last.reload_difference == 0
    assert report.last.fidelity.cosine > 0.6
    files = [*(artifact(state) / name for name in before.files), artifact(state) / "zoopress.json"]
    assert report.original_size_bytes == sum(file.stat().st_size for file in files)
    assert report.first_original["size_bytes"] == before.base.size_bytes
    assert report.first_original["stages"] == techniques(before)
    assert report.metrics()["first_original_ratio"] == pytest.approx(
        before.base.size_bytes / report.last.size_bytes, abs=1e-4
    )
    packings = {edit.packing for edit in before.edits if edit.edit == "pack"}
    assert packings <= {edit.packing for edit in after.edits if edit.edit == "pack"}


@pytest.mark.parametrize("state", ["cnn-masked", "cnn-coded", "lstm-masked", "cnn-three_bits"])
def test_pruned_weights_stay_pruned(
    state: str, further: Any, tmp_path: Path, plugins: Plugins
) -> None:
    card = card_of(state, tmp_path)
    before = dense_masks(open_original(card, plugins).model.open().model)
    after = dense_masks(reload_artifact(further(state).artifact, card, plugins))
    assert before.keys() == after.keys() != set()
    for name, kept in before.items():
        assert not bool((after[name] & ~kept).any()), name


def dense_masks(model: Model) -> dict[str, torch.Tensor]:
    """Return where each pruned weight is not zero, as the network computes with it."""
    packed, tensors = packed_weights(model.module), model.tensors()
    names = {
        name.rpartition(".")[0] if name not in tensors or name.endswith(".codes") else name
        for name in model.masks
    }
    return {
        name: (packed[name].dense() if name in packed else tensors[name]) != 0 for name in names
    }


@pytest.mark.parametrize("state", PACKED)
@pytest.mark.parametrize("technique", ["magnitude_pruning", "weight_quantization", "truncated_svd"])
def test_what_would_undo_or_repeat_its_stages_is_refused_by_the_plan(
    state: str, technique: str, tmp_path: Path, plugins: Plugins
) -> None:
    settings = {"magnitude_pruning": {"sparsity": 0.5}, "truncated_svd": {"parameters": 0.5}}
    recipe = recipe_of(tmp_path, {"technique": technique, **settings.get(technique, {"bits": 4})})
    with pytest.raises(PlanError, match=r"the source's stage \d \(\w+\) leaves none.*compressed"):
        open_cell(card_of(state, tmp_path), recipe, Store(tmp_path / "store"), plugins)


def test_masks_of_the_source_are_not_discarded(tmp_path: Path, plugins: Plugins) -> None:
    recipe = recipe_of(tmp_path, {"technique": "truncated_svd", "parameters": 0.5})
    card = card_of("cnn-masked", tmp_path)
    with pytest.raises(PlanError, match=r"would discard the masks that the source's stage 1"):
        open_cell(card, recipe, Store(tmp_path / "store"), plugins)


@pytest.mark.parametrize("state", STATES)
def test_it_is_a_teacher(state: str, tmp_path: Path, plugins: Plugins) -> None:
    card_of(state, tmp_path)
    student = card_of("cnn-half", tmp_path, name="student")
    recipe = recipe_of(tmp_path, QUANTIZED)
    bench = Workbench(open_cell(student, recipe, Store(tmp_path / "store"), plugins), Reporter())
    teacher = bench.teacher(str(tmp_path / f"{state}.yaml"))
    torch.testing.assert_close(outputs_of(state, teacher), OUTPUTS[state], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("student", "teacher"), [("cnn-masked", "cnn-grid"), ("bert-removed", "bert-quantized")]
)
def test_a_compressed_student_learns_from_a_compressed_teacher(
    student: str, teacher: str, tmp_path: Path, plugins: Plugins
) -> None:
    card_of(teacher, tmp_path)
    stage = {"technique": "distillation", "teacher": str(tmp_path / f"{teacher}.yaml")}
    stage |= {"response": "regression", "steps": 60, "evaluations": 0, "batch_size": 8}
    stage |= {"learning_rate": 1.0e-3, "batch_norm": "freeze"}
    data = card_of(student, tmp_path).data
    assert data is not None
    wide = data.model_dump(exclude_defaults=True) | {"calibration_samples": 40}
    card = card_of(student, tmp_path, data=wide)
    result = compress(
        card, recipe_of(tmp_path, stage), tmp_path / "out", Store(tmp_path / "store"), plugins
    )
    learned = reload_artifact(result.artifact, card, plugins).module
    far = (outputs_of(student, learned) - OUTPUTS[teacher]).norm()
    assert far < 0.9 * (OUTPUTS[student] - OUTPUTS[teacher]).norm()


@pytest.fixture
def acme(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    hub.add_user("alice", token="hf_alice", orgs=["acme"])
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub


@pytest.mark.parametrize("state", STATES)
def test_it_is_published_and_is_a_source_on_the_hub(
    state: str, further: Any, acme: HubFixture, tmp_path: Path, plugins: Plugins
) -> None:
    from huggingface_hub import ModelCard

    result: Result = further(state)
    repo = f"acme/{state}"
    # Networks that were never trained tell labels by a hair, and lose some at once.
    push(Hub(), open_release(result.folder, plugins), repo, PushOptions(allow_low_quality=True))
    page = acme.files(repo)["README.md"].decode()
    data = ModelCard(page).data
    assert data.license == "mit"
    is_bert = state.startswith("bert")
    assert data.base_model == ("acme/tiny-bert" if is_bert else None)
    assert f"itself a compressed model: made of {'acme/tiny-bert' if is_bert else ''}" in page
    lineage = find_lineage(repo)
    assert [stage["technique"] for stage in lineage.stages] == techniques(
        read_manifest(result.artifact)
    )
    *earlier, last = [stage["figures"] for stage in lineage.stages]
    assert earlier == [None] * len(earlier)
    assert last["cosine"] == round(result.report.last.fidelity.cosine, 6)

    card = card_of(state, tmp_path, f"hub:{repo}", name="again")
    original = open_original(card, plugins)
    assert original.base.base_model == ("acme/tiny-bert" if is_bert else None)
    assert original.files.revision == acme.head(repo)
    mine = reload_artifact(result.artifact, card_of(state, tmp_path), plugins).module
    torch.testing.assert_close(
        outputs_of(state, original.model.load()), outputs_of(state, mine), rtol=1e-2, atol=1e-3
    )


def test_a_run_folder_and_a_file_of_an_artifact_stand_for_it(
    further: Any, tmp_path: Path, plugins: Plugins
) -> None:
    result: Result = further("bert-removed")
    for place in (result.folder, result.artifact, result.artifact / "config.json"):
        card = card_of("bert-removed", tmp_path, f"path:{place}")
        assert open_original(card, plugins).files.folder == result.artifact.resolve()


def test_a_third_chain_goes_on_from_the_second(
    further: Any, tmp_path: Path, plugins: Plugins
) -> None:
    result: Result = further("cnn-masked")
    card = card_of("cnn-masked", tmp_path, f"path:{result.folder}")
    again = compress(
        card, recipe_of(tmp_path, QUANTIZED, CODED), tmp_path / "out", Store(tmp_path), plugins
    )
    manifest = read_manifest(again.artifact)
    assert techniques(manifest) == [
        *("magnitude_pruning", "magnitude_pruning", "weight_quantization", "entropy_coding")
    ]
    assert manifest.base == read_manifest(artifact("cnn-masked")).base


def test_a_source_that_is_unlike_its_original_makes_its_results_so(
    tmp_path: Path, plugins: Plugins
) -> None:
    store, card = Store(tmp_path / "store"), card_of("cnn-masked", tmp_path)
    dead = recipe_of(tmp_path, {"technique": "magnitude_pruning", "sparsity": 0.995}, name="dead")
    first = compress(card, dead, tmp_path / "dead", store, plugins)
    assert not first.report.last_judged.like_original
    heard: list[dict[str, Any]] = []
    coded = recipe_of(tmp_path, CODED, name="coded")
    again = card_of("cnn-masked", tmp_path, f"path:{first.artifact}")
    for _ in range(2):  # computed, and from the store
        out, reporter = tmp_path / "coded", Reporter([heard.append])
        report = compress(again, coded, out, store, plugins, reporter).report
        assert report.last_judged.like_original
        assert report.metrics()["like_original"] is False
        assert "UNLIKE THE FIRST ORIGINAL" in heard[-1]["text"]
        with pytest.raises(GateError, match=r"not published: UNLIKE THE FIRST.*label loyalty"):
            refuse_low_quality(report)


def test_two_chains_give_the_bytes_of_one(
    tmp_path: Path, plugins: Plugins, tiny_card: Card
) -> None:
    pruned = {"technique": "magnitude_pruning", "sparsity": 0.5}
    store = Store(tmp_path / "store")
    one = compress(
        tiny_card,
        recipe_of(tmp_path, pruned, QUANTIZED, name="one"),
        tmp_path / "1",
        store,
        plugins,
    )
    first = compress(
        tiny_card, recipe_of(tmp_path, pruned, name="first"), tmp_path / "2", store, plugins
    )
    path = tmp_path / "compressed.yaml"
    path.write_text(
        yaml.safe_dump(tiny_card.as_dict() | {"source": f"path:{first.folder}", "name": "c"})
    )
    from zoopress.cards import load_card

    second = compress(
        load_card(str(path), plugins),
        recipe_of(tmp_path, QUANTIZED, name="second"),
        tmp_path / "3",
        store,
        plugins,
    )
    files = {path.name for path in one.artifact.iterdir()} - {"README.md"}
    assert {path.name for path in second.artifact.iterdir()} - {"README.md"} == files
    for name in files:
        assert (second.artifact / name).read_bytes() == (one.artifact / name).read_bytes(), name
    assert json.loads((one.folder / "report.json").read_bytes())["first_original"] == {}


def test_an_artifact_is_evaluated_beside_a_compressed_original(
    further: Any, tmp_path: Path, plugins: Plugins
) -> None:
    result: Result = further("lstm-masked")
    figures = evaluate_artifact(result.artifact, card_of("lstm-masked", tmp_path), plugins)
    assert figures["cosine"] == pytest.approx(result.report.last.fidelity.cosine, abs=1e-6)
    assert figures["compression_ratio"] == pytest.approx(result.report.compression_ratio)


def test_a_compressed_model_is_fine_tuned_on_another_task(tmp_path: Path, plugins: Plugins) -> None:
    from sklearn.datasets import load_digits

    stages = "[{technique: neuron_pruning, sparsity: 0.25}, {technique: magnitude_pruning, "
    first = press(digits_card(tmp_path), stages + "sparsity: 0.5}]", tmp_path / "first", plugins)
    digits = load_digits()
    # The same images, and another question: how far a digit is from nine.
    np.savez(
        tmp_path / "distances.npz", image=digits.images.astype(np.uint8), label=9 - digits.target
    )
    card = Card.model_validate(
        {
            "name": "distances",
            "source": f"path:{first.folder}",
            "factory": f"{Path(digits_reader.__file__).resolve()}:reader",
            "task": "image-classification",
            "data": {
                "dataset": f"file:{tmp_path / 'distances.npz'}",
                "preprocessing": {"rescale": 1 / 16},
                "calibration_samples": 32,
                "evaluation_samples": 300,
                "validation_samples": 100,
            },
        }
    )
    tuned = press(
        card,
        "[{technique: fine_tuning, epochs: 6, learning_rate: 4.0e-3, evaluations: 3}]",
        tmp_path / "second",
        plugins,
    )
    figures = tuned.report.last
    assert figures.metrics["accuracy"] > 0.7
    assert figures.metric_drop is not None
    assert figures.metric_drop < -0.5, "before, it answered another question"
    manifest = read_manifest(tuned.artifact)
    assert techniques(manifest) == ["neuron_pruning", "magnitude_pruning", "fine_tuning"]
    assert manifest.base.task == "image-classification"
    before, after = (
        dense_masks(reload_artifact(folder, card, plugins))
        for folder in (first.artifact, tuned.artifact)
    )
    assert all(not bool((after[name] & ~kept).any()) for name, kept in before.items())
