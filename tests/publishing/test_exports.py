"""Files beside a published model: opened without zoopress by the page's own code, or not sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import UploadRules
from hub_server.fixtures import HubFixture
from language_models import PLUGINS, decoder_card
from text_models import save_model
from without_zoopress import run_without_zoopress
from zoopress.cards import Card
from zoopress.commands.cli import main
from zoopress.errors import DeploymentError, InputError
from zoopress.hub import client
from zoopress.hub.client import Hub
from zoopress.models.packing import unpack
from zoopress.publishing.exports import RECORD, Exports, make_exports
from zoopress.publishing.publish import PushOptions, push
from zoopress.publishing.release import Release, open_release
from zoopress.testing import reload_artifact, run_chain

pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("compressed_tensors")

TOKEN = "hf_alicealicealice"
REPO = "zoo/decoder"
NAMES = ("gguf", "compressed-tensors", "torch_export")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    found = decoder_card(tmp_path_factory.mktemp("card"), use_cache=False)
    return found.model_copy(update={"license": "mit"})


@pytest.fixture(scope="module")
def release(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Release:
    kind = PLUGINS.technique("weight_quantization")
    folder = tmp_path_factory.mktemp("run")
    run_chain([kind(kind.config_type(bits=8, group_size=32))], card, folder, PLUGINS)
    return open_release(folder, PLUGINS)


@pytest.fixture(scope="module")
def exports(release: Release, card: Card, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoopress.publishing.exports._SECONDS", 0.05)
        return make_exports(NAMES, release, card, tmp_path_factory.mktemp("made"), PLUGINS)


@pytest.fixture(autouse=True)
def alice(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=1000)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0, 0.0, 0.0))
    return hub


def python_of(page: str) -> list[str]:
    section = page.partition("## Without zoopress")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def test_the_pages_own_code_opens_them_without_zoopress(
    alice: HubFixture, release: Release, card: Card, exports: Exports, tmp_path: Path
) -> None:
    push(Hub(), release, REPO, PushOptions(exports=exports))
    files = alice.files(REPO)
    assert "decoder-Q8_0.gguf" in files
    assert "torch_export/model.pt2" in files
    assert {"compressed-tensors/config.json", "compressed-tensors/model.safetensors"} <= set(files)
    page = files["README.md"].decode()
    snippets = python_of(page)
    assert len(snippets) == 3
    module = reload_artifact(release.folder, card, PLUGINS).module
    unpack(module, "all")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = module(ids).logits
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    script = """
import json, sys
import torch
from safetensors.torch import load_file, save_file

folder = sys.argv[1]
ids = load_file(folder + "/ids.safetensors")["ids"]
found = {}
for position, snippet in enumerate(json.load(open(folder + "/snippets.json"))):
    scope = {}
    exec(snippet, scope)
    model = scope["model"]
    if "transformers" in snippet:
        model.eval()
    with torch.no_grad():
        out = model(input_ids=ids)
    found[str(position)] = (out if torch.is_tensor(out) else out["logits"]).float().contiguous()
save_file(found, folder + "/logits.safetensors")
"""
    run_without_zoopress(
        script, tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=alice.endpoint, HF_HOME=str(tmp_path)
    )
    for name, logits in load_file(tmp_path / "logits.safetensors").items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            logits, expected, rtol=0, atol=1e-4 * scale, msg=snippets[int(name)]
        )


def test_the_page_tells_sizes_differences_and_times(release: Release, exports: Exports) -> None:
    from zoopress.publishing.model_card import render_model_card

    page = render_model_card(release.report, REPO, exports=exports)
    section = page.partition("## Without zoopress")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) == 3
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert "of the largest" in cells[2]
        assert cells[3] == "1"
        assert float(cells[4]) > 0
        assert float(cells[5]) > 0
    assert "weights in Q8\\_0" in section or "weights in Q8_0" in section
    assert f'--hf-repo "{REPO}"' in section
    assert "## Without zoopress" not in render_model_card(release.report, REPO)


def test_the_same_again_makes_no_commit_and_without_them_they_go(
    alice: HubFixture, release: Release, card: Card, exports: Exports, tmp_path: Path
) -> None:
    first = push(Hub(), release, REPO, PushOptions(exports=exports))
    # Timed anew, the figures differ; the files do not.
    again = make_exports(NAMES[:2], release, card, tmp_path, PLUGINS)
    assert again.files.keys() < exports.files.keys()
    pair = Exports(exports.artifact_sha256, exports.made[:2], exports.machine)
    push(Hub(), release, REPO, PushOptions(exports=pair))
    head = alice.head(REPO)
    assert "torch_export/model.pt2" not in alice.files(REPO)
    done = push(Hub(), release, REPO, PushOptions(exports=again))
    assert (done.changed, done.commit) == (False, head)
    push(Hub(), release, REPO, PushOptions())
    left = set(alice.files(REPO)) - {"README.md", ".gitattributes"}
    assert left == {"zoopress.json", *release.manifest.files}
    assert RECORD in alice.files(REPO, first.commit)


@pytest.mark.parametrize(
    ("names", "error", "problem"),
    [
        (("gguf", "gguf"), None, ""),
        (("gguf", "gguf_q4_k"), DeploymentError, "none of its weights has up to 4 bits"),
        (("safetensors",), DeploymentError, "does not say under which name"),
    ],
)
def test_all_are_made_or_none(
    names: tuple[str, ...],
    error: type[Exception] | None,
    problem: str,
    release: Release,
    tmp_path: Path,
) -> None:
    if error is None:
        assert len(make_exports(names, release, None, tmp_path, PLUGINS).made) == 1
        return
    with pytest.raises(error, match=problem):
        make_exports(names, release, None, tmp_path, PLUGINS)


def test_two_of_one_name_are_refused(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoopress_zoo.exporters.gguf import Gguf

    monkeypatch.setattr(Gguf, "published_names", lambda *given: ["config.json"])
    with pytest.raises(InputError, match=r"would publish 'config.json', which is there already"):
        make_exports(["gguf"], release, None, tmp_path, PLUGINS)


def test_a_refusal_on_the_command_line_sends_nothing(
    alice: HubFixture,
    release: Release,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["push", str(release.folder.parent), REPO, "--with", "gguf,gguf-q4-k"]
    monkeypatch.setattr("sys.argv", ["zoopress", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "'gguf_q4_k' cannot write this model" in told
    assert "Traceback" not in told
    assert not [r for r in alice.requests if r.method in ("POST", "PUT")]


def encoder_card(folder: Path) -> Card:
    """Save a tiny sentence encoder in the layout of sentence-transformers, and return its card."""
    place = folder / "encoder"
    save_model(place, "BertModel")
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    texts = folder / "texts.txt"
    texts.write_text("\n".join(" ".join("abcdefghijklmnop"[n : n + 5]) for n in range(11)))
    return Card.model_validate(
        {
            "name": "encoder",
            "license": "mit",
            "source": f"path:{place}",
            "task": "sentence-similarity",
            "data": {"text": str(texts), "evaluation_samples": 4, "calibration_samples": 2},
        }
    )


def test_sentence_encoders_have_their_transformer_where_libraries_look(
    alice: HubFixture, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    card = encoder_card(tmp_path)
    kind = PLUGINS.technique("weight_quantization")
    run_chain([kind(kind.config_type(bits=8))], card, tmp_path / "run", PLUGINS)
    release = open_release(tmp_path / "run", PLUGINS)
    (tmp_path / "made").mkdir()
    exports = make_exports(["onnx"], release, card, tmp_path / "made", PLUGINS)
    push(Hub(), release, REPO, PushOptions(exports=exports))
    files = alice.files(REPO)
    assert files["onnx/model.onnx"] == files["onnx/model_qint8_avx512_vnni.onnx"]
    snippets = python_of(files["README.md"].decode())
    assert f'"{REPO}", backend="onnx"' in snippets[0]
    script = """
import sys
import torch
from safetensors.torch import load_file, save_file

exec(open(sys.argv[1] + "/snippet.py").read())
given = load_file(sys.argv[1] + "/given.safetensors")
hidden = session.run(["last_hidden_state"], {name: given[name].numpy() for name in inputs})[0]
save_file({"hidden": torch.from_numpy(hidden)}, sys.argv[1] + "/hidden.safetensors")
"""
    (tmp_path / "snippet.py").write_text(snippets[1])
    ids = torch.randint(5, 20, (3, 7))
    ones = torch.ones_like(ids)
    given = {"input_ids": ids, "attention_mask": ones, "token_type_ids": torch.zeros_like(ids)}
    save_file(given, tmp_path / "given.safetensors")
    run_without_zoopress(
        script, tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=alice.endpoint, HF_HOME=str(tmp_path)
    )
    module = reload_artifact(release.folder, card, PLUGINS).module
    unpack(module, "all")
    with torch.no_grad():
        expected = module.transformer(**given).last_hidden_state
    found = load_file(tmp_path / "hidden.safetensors")["hidden"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
