"""What zoopress 0.1 left behind, before its modules moved into rooms, is read as it was."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoopress
from zoopress.artifacts.manifest import Manifest, read_manifest
from zoopress.publishing.lineage import find_lineage
from zoopress.reports.report import markdown
from zoopress.results import Report, StageResult, read_report
from zoopress.store import Store
from zoopress.store.upkeep import list_stored

MADE = Path(__file__).parents[1] / "data" / "made_by_0_1"
STATES = sorted(path.name for path in (MADE / "artifacts").iterdir())
INPUTS = load_file(MADE / "inputs.safetensors")
OUTPUTS = load_file(MADE / "outputs.safetensors")


def factory_of(name: str) -> str | None:
    return None if name == "bert" else f"{MADE / 'models.py'}:{name}"


def test_every_artifact_has_its_outputs() -> None:
    assert sorted(OUTPUTS) == STATES
    forms = {e.packing for s in STATES for e in manifest(s).edits if e.edit == "pack"}
    assert forms == {"codebook", "grid", "lattice", "quantized"}
    layers = {e.layer for s in STATES for e in manifest(s).edits if e.edit == "replace"}
    assert layers == {"factored_conv", "factored_linear", "folded_layer", "folded_norm"}
    assert {e.edit for s in STATES for e in manifest(s).edits} == {
        *("keep", "pack", "replace", "resize")
    }


def manifest(state: str) -> Manifest:
    return read_manifest(MADE / "artifacts" / state)


@pytest.mark.parametrize("state", STATES)
def test_artifact_gives_the_outputs_that_it_gave(state: str) -> None:
    name = state.partition("-")[0]
    model = zoopress.load(MADE / "artifacts" / state, factory=factory_of(name), unpacking="none")
    dense = zoopress.load(MADE / "artifacts" / state, factory=factory_of(name), unpacking="all")
    with torch.inference_mode():
        output, exact = model(INPUTS[name]), dense(INPUTS[name])
    torch.testing.assert_close(
        getattr(output, "logits", output), getattr(exact, "logits", exact), rtol=1e-4, atol=1e-5
    )
    # Machines add up in different orders. The layers of 8 bits had a kernel that rounded inputs to
    # bfloat16 when these outputs were written (decision 42).
    rounded = torch.finfo(torch.bfloat16).eps / 2 if state == "cnn-grid" else 1e-4
    torch.testing.assert_close(
        getattr(output, "logits", output), OUTPUTS[state], rtol=rounded, atol=1e-5
    )


def test_report_is_read() -> None:
    report = read_report(MADE / "run" / "report.json")
    assert [stage.technique for stage in report.stages] == [
        *("neuron_pruning", "magnitude_pruning", "weight_quantization", "entropy_coding")
    ]
    assert f"{report.compression_ratio:.2f}× smaller" in markdown(report)
    lineage = find_lineage(str(MADE / "run"))
    assert lineage.source["name"] == "lstm"
    assert [stage["figures"]["cosine"] for stage in lineage.stages] == [
        round(stage.fidelity.cosine, 6) for stage in report.stages
    ]


def test_store_is_listed_and_read(tmp_path: Path) -> None:
    report = read_report(MADE / "run" / "report.json")
    shutil.copytree(MADE / "store", tmp_path / "store")  # reading notes when it was last used
    store = Store(tmp_path / "store")
    *stages, reported = report.store_keys
    assert {item.key for item in list_stored(store)} == set(report.store_keys)
    found = [store.find(key) for key in stages]
    assert [StageResult.from_dict(entry.record) for entry in found if entry] == report.stages
    last, record = store.find(stages[-1]), store.find(reported)
    assert last is not None
    assert record is not None
    assert Report.from_dict(record.record).last == report.last
    assert read_manifest(last.artifact) == read_manifest(MADE / "run" / "artifact")
