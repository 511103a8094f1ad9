"""The page of a published model: true, safe, readable by the Hub, and the same every time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given, settings, strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hub_server.cards import validate
from small_zoo import read_zoo, write_zoo
from zoopress.errors import InputError
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.publishing.card_metadata import auto_class, pipeline_tag
from zoopress.publishing.card_template import DEFAULT_TEMPLATE, environment_for
from zoopress.publishing.model_card import render_model_card
from zoopress.recipes import parse_recipe
from zoopress.reports.markdown import one_line
from zoopress.reports.report import comparison_rows
from zoopress.results import Report
from zoopress.store import Store
from zoopress.yaml_source import parse_yaml

REPO = "someone/perceptron-small"
HEADINGS = [
    "Use it",
    "What compression cost",
    "How it was made",
    "Make it again",
    "Limits",
    "Licence",
]
PLUGINS = load_plugins()
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A stored report of a tiny model, read back as publication does."""
    folder = tmp_path_factory.mktemp("zoo")
    write_zoo(folder)
    result = compress(*read_zoo(folder), folder / "out", Store(folder / "store"))
    made = Report.from_dict(result.report.as_dict())
    # Wherever the tests run, git or not.
    return replace(made, made_with={"zoopress": "0.1.0", "torch": "2.13.0"})


def of(report: Report, **changes: Any) -> Report:
    """Return the report of another card."""
    card = {k: v for k, v in {**report.card, **changes}.items() if v is not None}
    return replace(report, card=card)


def encoder(report: Report, architecture: str = "sentence_encoder", **loads: Any) -> Report:
    """Return the report of a model that a library of the Hub's loads."""
    return replace(
        of(report, factory=None, factory_arguments=None, base_model="org/Original-v2"),
        loads_as={
            "architecture": architecture,
            "native": False,
            "by_library": loads.get("native", architecture != "timm"),
            **loads,
        },
    )


@lru_cache(maxsize=4)
def tokens(page: str) -> list[Token]:
    body = page.split("\n---\n", 1)[1]
    blocks = MarkdownIt("commonmark").enable("table").parse(body)
    return [token for block in blocks for token in (block, *(block.children or ()))]


def shown(page: str) -> str:
    """Return what a reader sees."""
    lines = []
    for token in tokens(page):
        if token.type in ("text", "code_inline", "fence"):
            lines.append(token.content)
        elif token.type in ("inline", "softbreak"):
            lines.append("\n")
    return "".join(lines)


def headings(page: str) -> list[tuple[str, str]]:
    return [
        (token.tag, tokens(page)[i + 1].content)
        for i, token in enumerate(tokens(page))
        if token.type == "heading_open"
    ]


def section(page: str, heading: str) -> str:
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def fences(page: str, language: str) -> list[str]:
    return [t.content for t in tokens(page) if t.type == "fence" and t.info == language]


def cells(page: str) -> list[list[int]]:
    """Return, for each table, how many cells each of its rows has."""
    tables: list[list[int]] = []
    for token in tokens(page):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append(0)
        elif token.type in ("th_open", "td_open"):
            tables[-1][-1] += 1
    return tables


# A stranger reads it.


def test_the_page_of_a_tiny_model(report: Report) -> None:
    page = render_model_card(report, REPO)
    assert page.startswith("---\n")
    assert page.endswith("\n")
    assert not re.search(r"\n{4}|[ \t]\n|undefined|None|\[More", page)
    [(tag, title), *others] = headings(page)
    assert tag == "h1"
    assert re.fullmatch(r"perceptron, compressed \d+\.\d×", title)
    assert others == [("h2", name) for name in HEADINGS]
    assert f"**{report.compression_ratio:.2f}× smaller**" in page
    assert f"**{report.last.fidelity.cosine:.4f}**" in page
    assert cells(page) == [[4] * 9, [6] * 5]
    assert fences(page, "python") == [
        f'import zoopress\n\nmodel = zoopress.load("{REPO}", factory=build)\n'
    ]
    assert "`networks.py:build`" in page


def test_the_page_is_the_same_every_time(report: Report) -> None:
    again = Report.from_dict(report.as_dict())
    assert render_model_card(report, REPO) == render_model_card(again, REPO)


def test_the_recipe_on_the_page_is_the_one_that_ran(report: Report) -> None:
    recipe, card = fences(render_model_card(report, REPO), "yaml")
    parsed = parse_recipe(parse_yaml(recipe, Path("recipe.yaml"), InputError), PLUGINS, "other")
    assert parsed.as_dict() == report.recipe
    assert yaml.safe_load(card) == report.card


def test_figures_of_one_machine_are_on_no_page_of_a_folder(report: Report) -> None:
    made = replace(report, made_with={**report.made_with, "commit": "c" * 40})
    slow = replace(made, latency=[{**row, "original_ms_p50": 77.7} for row in report.latency])
    assert "Latency" not in render_model_card(report)
    assert render_model_card(report) == render_model_card(slow)
    published = render_model_card(slow, REPO)
    assert "77.7 ms" in published
    assert str(report.machine["processor"]) in published
    assert "c" * 40 in published


def test_changes_that_were_not_committed_are_confessed(report: Report) -> None:
    def page(**made: str) -> str:
        return section(render_model_card(replace(report, made_with=made), REPO), "Make it again")

    assert "commit" not in page(torch="2.13.0")
    assert "**with changes" not in page(commit="abc")
    assert "**with changes that were not committed**" in page(commit="abc", changed="yes")


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("https://me:secret@git.example.org/a/b.git", "https://git.example.org/a/b.git"),
        ("git@git.example.org:a/b.git", "git.example.org:a/b.git"),
        ("ssh://git@git.example.org/a/b.git", "git.example.org/a/b.git"),
        ("/home/me/secret/b", None),
        ("file:///home/me/secret/b", None),
        ("../secret/b", None),
    ],
)
def test_a_repository_is_named_if_others_can_reach_it(
    report: Report, repository: str, said: str | None
) -> None:
    made = {"commit": "abc", "repository": repository}
    page = render_model_card(replace(report, made_with=made), REPO)
    assert "secret" not in page
    assert (said or "of a repository") in page


# How to load it.


def test_a_sentence_encoder_loads_in_two_ways(report: Report) -> None:
    page = render_model_card(encoder(report), REPO)
    first, second = fences(page, "python")
    assert first.splitlines()[2] == f'model = zoopress.load("{REPO}")'
    assert "model.encode([" in first
    assert f'SentenceTransformer("{REPO}")' in second
    assert "once zoopress is installed" in page
    assert ModelCard(page).data.library_name == "sentence-transformers"
    assert ModelCard(page).data.pipeline_tag == "sentence-similarity"


GIT = "git+https://git.example/zoo/zoopress"


@pytest.mark.parametrize(
    ("install", "line"),
    [
        (GIT, f"pip install 'zoopress[transformers] @ {GIT}'\n"),
        ("zoopress", "pip install 'zoopress[transformers]'\n"),
        ("zoopress>=0.1", "pip install 'zoopress[transformers]>=0.1'\n"),
    ],
)
def test_a_page_installs_zoopress_from_where_its_publisher_says(
    report: Report, install: str, line: str
) -> None:
    page = render_model_card(encoder(report), REPO, install=install)
    assert fences(page, "bash")[0] == line


@pytest.mark.parametrize(
    "install", ["zoopres", "pip install zoopress", "git+https://x/y' && rm -rf ~", "", "zoopress x"]
)
def test_what_installs_nothing_is_refused(report: Report, install: str) -> None:
    with pytest.raises(InputError, match="is nothing that installs zoopress"):
        render_model_card(encoder(report), REPO, install=install)


@pytest.mark.parametrize(
    ("origin", "installer", "line"),
    [
        (
            {
                "url": "https://me:secret@git.example/zoo/zoopress.git",
                "vcs_info": {"vcs": "git", "commit_id": "a" * 40},
            },
            "pip",
            f"'zoopress[transformers] @ git+https://git.example/zoo/zoopress.git@{'a' * 40}'",
        ),
        (
            {"url": "https://files.example/zoopress-0.1.0-py3-none-any.whl", "archive_info": {}},
            "uv",
            "'zoopress[transformers] @ https://files.example/zoopress-0.1.0-py3-none-any.whl'",
        ),
        ({"url": "file:///home/me/zoopress", "dir_info": {"editable": True}}, "pip", None),
        ({"url": "file:///home/me/zoopress-0.1.0.whl", "archive_info": {}}, "pip", None),
        (None, "pip", "'zoopress[transformers]'"),
        (None, None, None),
    ],
)
def test_a_page_installs_zoopress_from_where_it_came_from(
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
    origin: dict[str, Any] | None,
    installer: str | None,
    line: str | None,
) -> None:
    """A name that no index has may be taken by a stranger's package."""
    recorded = {"direct_url.json": origin and json.dumps(origin), "INSTALLER": installer}
    # Of whatever class: importlib_metadata, once imported, finds distributions of its own.
    kind = type(distribution("zoopress"))
    monkeypatch.setattr(kind, "read_text", lambda self, name: recorded.get(name))
    page = render_model_card(encoder(report), REPO)
    assert "secret" not in page
    assert "/home/me" not in page
    if line is None:
        assert "pip install" not in page
        assert "It needs zoopress 0.1.0 with its extra `transformers`, from where" in page
    else:
        assert fences(page, "bash")[0] == f"pip install {line}\n"
    folder = render_model_card(encoder(report))
    assert "pip install" not in folder, "it is the same on every machine"


def test_a_native_model_needs_no_zoopress(report: Report) -> None:
    name = "BertForSequenceClassification"
    page = render_model_card(encoder(report, "transformers", native=True, **{"class": name}), REPO)
    assert f'AutoModelForSequenceClassification.from_pretrained("{REPO}")' in page
    assert "without zoopress" in page
    assert ModelCard(page).data.library_name == "transformers"
    assert ModelCard(page).data.pipeline_tag == "text-classification"


@pytest.mark.parametrize("native", [True, False])
def test_timm_loads_only_what_is_its_own(report: Report, native: bool) -> None:
    page = render_model_card(encoder(report, "timm", native=native), REPO)
    assert (f'timm.create_model("hf_hub:{REPO}", pretrained=True)' in page) == native
    assert ModelCard(page).data.library_name == ("timm" if native else "zoopress")
    folder = render_model_card(encoder(report, "timm", native=native))
    assert ('"local-dir:PATH/TO/THIS/FOLDER"' in folder) == native


@pytest.mark.parametrize(
    ("name", "auto", "tag"),
    [
        ("BertModel", "AutoModel", None),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("LlamaForCausalLM", "AutoModelForCausalLM", "text-generation"),
        ("ViTForImageClassification", "AutoModelForImageClassification", "image-classification"),
        ("Wav2Vec2ForCTC", "AutoModelForCTC", "automatic-speech-recognition"),
        ("Wav2Vec2ForSequenceClassification", None, "audio-classification"),
        ("T5ForConditionalGeneration", None, None),
        ("T5EncoderModel", None, None),
        ("MarianMTModel", None, None),
        ("GPT2DoubleHeadsModel", None, None),
        ("AutoModelForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    ],
)
def test_the_class_to_load_with(
    report: Report, name: str, auto: str | None, tag: str | None
) -> None:
    made = encoder(report, "transformers", **{"class": name})
    assert auto_class(made) == (auto or name)
    assert pipeline_tag(made) == tag
    transformers = pytest.importorskip("transformers")
    assert (auto or name) in dir(transformers)


def test_a_hostile_class_is_no_code(report: Report) -> None:
    made = encoder(report, "transformers", **{"class": "x\nimport os"})
    assert "import os" not in render_model_card(made, REPO)


# The Hub reads it.


def test_the_metadata_follow_the_hubs_conventions(report: Report, tmp_path: Path) -> None:
    made = encoder(
        of(
            report,
            license="apache-2.0",
            language=["en", "no"],
            datasets=["s2orc"],
            metrics=["accuracy"],
            tags=[
                *("safetensors", "onnx", "tf", "transformers", "region:us", "license:mit"),
                *("base_model:finetune:a/b", "endpoints_compatible", "gguf", "4-bit", "en"),
                *("sentence-similarity", "arxiv:1908.10084", "finance", "finance"),
            ],
        )
    )
    page = render_model_card(made, REPO)
    assert validate(page) == ([], [])
    data = ModelCard(page).data
    assert data.base_model == "org/Original-v2"
    assert data.base_model_relation == "quantized"
    assert data.license == "apache-2.0"
    assert data.language == ["en", "no"]
    assert data.datasets == ["s2orc"]
    assert data.metrics[:2] == ["accuracy", "cosine_similarity"]
    assert data.tags == [
        *("arxiv:1908.10084", "finance", "zoopress", "compressed"),
        *("pruning", "quantization", "entropy-coding"),
    ]
    assert "https://arxiv.org/abs/1908.10084" in page
    assert str(ModelCard(page)) == page
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    assert metadata_load(tmp_path / "README.md") == data.to_dict()


def test_results_are_in_the_hubs_structured_form(report: Report) -> None:
    data = ModelCard(render_model_card(report, REPO)).data
    name, results = model_index_to_eval_results(data.to_dict()["model-index"])
    assert name == "perceptron-small"
    assert results == data.eval_results
    values = {result.metric_type: result.metric_value for result in results}
    fidelity = report.last.fidelity
    assert values == {
        "cosine_similarity": pytest.approx(fidelity.cosine, abs=1e-6),
        "label_loyalty": pytest.approx(fidelity.label_loyalty, abs=1e-6),
        "probability_loyalty": pytest.approx(fidelity.probability_loyalty, abs=1e-6),
        "compression_ratio": pytest.approx(report.compression_ratio, abs=1e-4),
        "size_bytes": report.last.size_bytes,
    }
    assert {result.verified for result in results} == {False}
    assert {result.dataset_type for result in results} == {"random"}
    assert {str(result.dataset_args) for result in results} == {
        f"{{'samples': {fidelity.samples}}}"
    }


@pytest.mark.parametrize(
    ("techniques", "relation"),
    [
        (["magnitude_pruning"], "quantized"),
        (["neuron_pruning", "truncated_svd"], "quantized"),
        (["weight_quantization", "entropy_coding"], "quantized"),
        (["weight_quantization", "of_a_plugin_not_installed"], None),
    ],
)
def test_the_relation_to_the_base_is_claimed_where_it_is_known(
    report: Report, techniques: list[str], relation: str | None
) -> None:
    stages = [replace(report.last, technique=name) for name in techniques]
    page = render_model_card(replace(encoder(report), stages=stages), REPO)
    assert ModelCard(page).data.get("base_model_relation") == relation
    assert ("Nothing was trained" in page) == (relation is not None)


@pytest.mark.parametrize("base", ["not a repo id", "a/b/c", "../x", None])
def test_a_base_that_cannot_be_on_the_hub_is_not_claimed(report: Report, base: str | None) -> None:
    data = ModelCard(render_model_card(of(report, base_model=base), REPO)).data
    assert data.base_model is None
    assert data.get("base_model_relation") is None


# Every limit is there where it is so, and only there.


def limits(report: Report, repo_id: str | None = REPO) -> str:
    return section(render_model_card(report, repo_id), "Limits")


def test_limits_that_every_model_has(report: Report) -> None:
    assert f"on {report.last.fidelity.samples} samples (random inputs)" in limits(report)
    assert "No accuracy on labelled data" in limits(report)


def test_limit_random_inputs(report: Report) -> None:
    said = "on random inputs says little"
    assert said in limits(report)
    assert said not in limits(of(report, data={"text": "python-docstrings"}))


def test_limit_weights_only(report: Report) -> None:
    said = "Only weights are quantized"
    assert said in limits(report)
    stages = [stage for stage in report.stages if stage.technique != "weight_quantization"]
    assert said not in limits(replace(report, stages=stages))


def test_limit_memory(report: Report) -> None:
    said = "3 of its 3 quantized weights have no kernel"
    assert said in limits(replace(report, kernels={"dense once loaded": 3}))
    assert "no kernel where" not in limits(replace(report, kernels={"torch int8 kernel": 3}))
    assert "no kernel where" not in limits(replace(report, kernels={"dense once loaded": 3}), None)


def test_limit_zeros(report: Report) -> None:
    said = "zeros that stay in place"
    assert f"{report.last.pruned / report.last.parameters:.1%} of its parameters" in limits(report)
    assert said not in limits(replace(report, stages=[replace(report.last, pruned=0)]))


def test_limit_slower(report: Report) -> None:
    def timed(speed_up: float) -> Report:
        return replace(report, latency=[{**report.latency[0], "speed_up": speed_up}])

    assert "Slower than the original at batch 1" in limits(timed(0.5))
    assert "Slower" not in limits(timed(1.1))
    assert "Slower" not in limits(timed(0.5), None)


def test_limit_code_of_the_network(report: Report) -> None:
    said = "without the code of its network"
    assert said in limits(report)
    assert said not in limits(encoder(report))


def test_limit_commercial_use(report: Report) -> None:
    assert "commercial" not in limits(of(report, license="mit"))
    assert "commercial" in limits(of(report, license="cc-by-nc-4.0"))


def test_limit_no_training(report: Report) -> None:
    assert "Nothing was trained" in limits(report)


# The licence.


def licence(report: Report, **named: Any) -> str:
    return section(render_model_card(report, REPO, **named), "Licence")


def test_the_licence_is_named_linked_and_carried(report: Report) -> None:
    assert "No licence is known" in licence(report)
    said = licence(of(encoder(report), license="gemma"), carried=["NOTICE", "config.json"])
    assert "[Gemma Terms of Use](https://ai.google.dev/gemma/terms)" in said
    assert "[org/Original-v2](https://huggingface.co/org/Original-v2)" in said
    assert "Gemma is provided under and subject to" in said
    assert "`NOTICE`" in said
    assert "config.json" not in said


def test_another_licence_is_named_and_linked(report: Report) -> None:
    named = {"license": "other", "license_name": "own", "license_link": "https://example.org/l"}
    page = render_model_card(of(report, **named), REPO)
    assert "[own](https://example.org/l)" in section(page, "Licence")
    assert {key: ModelCard(page).data.to_dict()[key] for key in named} == named
    assert "see `LICENSE`" in licence(of(report, **{**named, "license_link": "LICENSE"}))


def test_a_permission_is_printed(report: Report) -> None:
    assert "Permission" not in licence(report)
    said = licence(report, permission="see <https://example.org>\n## and more")
    assert "Permission to publish: see &lt;https" in said
    assert "\n## and" not in said


# No path of somebody's disk.


def test_no_absolute_path_leaks(report: Report) -> None:
    made = of(
        report,
        source="path:/home/somebody/models/weights.safetensors",
        factory="/home/somebody/networks.py:build",
        factory_arguments={"vocabulary": ["~somebody/words.txt"], "site": "https://a.org/home/x"},
        data={"file": "C:\\Users\\somebody\\inputs.npz"},
        license="other",
        license_name="own",
        license_link="file:///home/somebody/LICENSE",
    )
    stages = [replace(s, config={"teacher": "../../somebody/teacher"}) for s in report.stages]
    recipe = {**report.recipe, "stages": [{"technique": "x", "teacher": "/home/somebody/teacher"}]}
    page = render_model_card(
        replace(made, stages=stages, recipe=recipe, revision="/home/somebody/model"), REPO
    )
    assert "somebody" not in page
    assert "/home/x" in page
    _, card = fences(page, "yaml")
    assert yaml.safe_load(card)["source"] == "path:weights.safetensors"
    assert yaml.safe_load(card)["factory"] == "networks.py:build"
    assert yaml.safe_load(card)["data"] == {"file": "inputs.npz"}
    assert "`source`, `factory`" in page
    assert "a place outside the card's folder" in page


def test_files_beside_the_card_are_named_as_missing(report: Report) -> None:
    page = render_model_card(report, REPO)
    assert "Not in this repository: `networks.py`, `weights.safetensors`." in page
    assert "outside" not in page
    assert "Not in this" not in render_model_card(
        of(encoder(report), source="package:a/b", data={"text": "python-docstrings"}), REPO
    )


# Whatever a card says is text.

NASTY = [
    *("---", "\n---\n", "|", "a | b", "`", "```", "\n```\n", "~~~", "</table>", "<!--", "-->"),
    *(
        "<script>alert(1)</script>",
        "{{ 7*7 }}",
        "{% raw %}",
        "# x",
        "\n# x\n",
        "- x",
        "1. x",
        "===",
    ),
    *(
        "[a](javascript:b)",
        "![a](b)",
        "<http://a>",
        "\\",
        "\\|",
        "$$x$$",
        "\\\\(x\\\\)",
        "&lt;",
        "_a_",
    ),
    *("**b**", "no", "null", "2024-01-01", "\ud800", "\u202e", "\x00", "\x85", "\u2028", "'", '"'),
    *(": ", "a: b", "? x", "! x", "&a", "*a", "%a", "@a", "\t", "[x]: y", "    x", "> q", "👀"),
]
TEXT = st.lists(st.sampled_from(NASTY) | st.text(max_size=12), max_size=4).map("".join)
NONEMPTY = TEXT.filter(one_line)


@st.composite
def cards(draw: st.DrawFn) -> dict[str, Any]:
    """Cards with anything in every field."""
    words = st.lists(TEXT, max_size=3)
    optional = {
        **dict.fromkeys(("license", "license_name", "license_link", "pipeline_tag"), TEXT),
        **dict.fromkeys(("language", "tags", "datasets", "metrics"), words),
        **dict.fromkeys(("description", "base_model", "factory", "task"), TEXT),
        "factory_arguments": st.dictionaries(TEXT, TEXT, max_size=2),
        "data": st.sampled_from(["text", "file", "inputs"]).flatmap(
            lambda key: st.fixed_dictionaries({key: TEXT})
        ),
    }
    made = draw(st.fixed_dictionaries({"name": NONEMPTY, "source": TEXT}, optional=optional))
    return {key: value for key, value in made.items() if value}


def check_safe(report: Report, card: dict[str, Any], other: str, config: dict[str, Any]) -> None:
    """Put text everywhere that others write, and look for what it could have done."""
    made = replace(
        report,
        card=card,
        recipe={**report.recipe, "name": other, "description": other},
        revision=other,
        stages=[replace(stage, technique=other, config=config) for stage in report.stages],
        machine={**report.machine, "processor": other, "capability": other},
        made_with={"torch": other, "commit": other, "repository": other, other: other},
    )
    page = render_model_card(made, REPO, permission=other, carried=[other], plugins=PLUGINS)
    page.encode("utf-8")

    # The front matter is what was meant, survives the Hub's own tools, and ends where it should.
    read = ModelCard(page)
    data = read.data
    assert str(read) == page
    assert data.eval_results
    assert (data.pipeline_tag or "") in (one_line(card.get("pipeline_tag", "")), "other")
    if not re.search(r"[^\n]---\n", page):  # where the stand-in for the Hub looks closer than it
        problems, _ = validate(page)
        assert not [problem for problem in problems if '"license" must be' not in problem]

    # The page has the parts it should have, and no others.
    assert [text for tag, text in headings(page) if tag == "h2"] == HEADINGS
    assert len(headings(page)) == 1 + len(HEADINGS)
    rows = [line for line in read.text.split("\n") if line.startswith("| ")]
    labelled = report.last.fidelity.label_loyalty is not None
    figures = 1 + len(comparison_rows(report, latency=False))
    first, second = rows[: figures + 1], rows[figures + 1 :]
    assert [row.count("|") for row in first] == [5] * (figures + 1)
    assert [row.count("|") for row in second] == [6 + labelled] * (2 + len(report.stages))
    assert cells(page) == [[4] * figures, [5 + labelled] * (1 + len(report.stages))]
    recipe, own = fences(page, "yaml")
    assert yaml.safe_load(own).keys() == card.keys()
    assert yaml.safe_load(recipe)["description"] == other
    assert not {token.type for token in tokens(page)} & {
        *("image", "html_block", "hr", "code_block", "blockquote_open", "ordered_list_open")
    }
    for token in tokens(page):
        if token.type == "html_inline":
            assert token.content in ("<code>", "</code>")
        if token.type == "link_open":
            assert re.match("https?://", str(token.attrs["href"]))
            assert token.markup != "autolink"
    # Here it can be seen as it is.
    assert one_line(card.get("description", "")) in shown(page)
    assert f"Permission to publish: {one_line(other)}" in shown(page)


@settings(max_examples=40)
@given(card=cards(), other=NONEMPTY, config=st.dictionaries(TEXT, TEXT | st.lists(TEXT)))
def test_random_cards_break_neither_page_nor_metadata(
    report: Report, card: dict[str, Any], other: str, config: dict[str, Any]
) -> None:
    check_safe(report, {"source": "", **card}, other, config)


@pytest.mark.parametrize("nasty", NASTY)
def test_no_text_breaks_page_or_metadata(report: Report, nasty: str) -> None:
    for value in (nasty, f"a{nasty}b\n{nasty} {nasty}"):
        if not one_line(value):
            continue
        card = {
            **dict.fromkeys(("name", "source", "factory", "base_model", "description"), value),
            **dict.fromkeys(("license", "license_name", "license_link", "pipeline_tag"), value),
            **{key: [value] for key in ("language", "tags", "datasets", "metrics")},
            "factory_arguments": {value: value},
            "data": {"text": value},
        }
        check_safe(report, card, value, {value: value, "a": [value]})


def test_a_value_in_a_table_is_shown_whole(report: Report) -> None:
    stages = [replace(report.last, config={"a": "x | </td> `y` \\| *z*"})]
    page = render_model_card(replace(report, stages=stages), REPO)
    assert "a x | </td> `y` \\| *z*" in shown(page).split("\n")


# A template of one's own.


def test_a_template_may_change_a_block(report: Report, tmp_path: Path) -> None:
    template = tmp_path / "mine.j2"
    template.write_text(
        '{% extends "model_card.md.j2" %}\n'
        "{% block limits %}{{ super() }}- Mine: {{ size }} of {{ 'a|b' | text }}.\n{% endblock %}"
    )
    page = render_model_card(report, REPO, template)
    default = render_model_card(report, REPO)
    assert "- Mine: " in section(page, "Limits")
    assert "a&#124;b" in page
    assert re.sub(r"\n- Mine.*", "", page) == default


def test_a_template_may_be_the_whole_page(report: Report, tmp_path: Path) -> None:
    template = tmp_path / "mine.j2"
    template.write_text("---\n{{ metadata }}\n---\n# {{ title }}\n")
    page = render_model_card(report, REPO, str(template))
    assert ModelCard(page).text == f"# perceptron, compressed {report.compression_ratio:.1f}×\n"


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        (["a", "{{ titel }}"], 2, "Did you mean 'title'?"),
        (["{% if %}"], 1, "Expected an expression"),
        (["", "", "{% for x in y %}"], 3, "endfor"),
        (['{% extends "other.j2" %}'], 1, "model_card.md.j2"),
        (['{% extends "model_card.md.j2" %}', "{% block limit %}{% endblock %}"], 2, "'limits'?"),
        (["{{ 1 + 'a' }}"], 1, "TypeError"),
        (["", "{{ metrics.__class__.__mro__ }}"], 2, "unsafe"),
        (["{{ metrics.update({}) }}"], 1, "SecurityError"),
        (["{{ limits | nothing }}"], 1, "No filter named 'nothing'"),
        (['{% include "/etc/passwd" %}'], 1, "/etc/passwd"),
    ],
)
def test_a_mistake_in_a_template_is_named_with_its_line(
    report: Report, tmp_path: Path, lines: list[str], line: int, said: str
) -> None:
    template = tmp_path / "mine.j2"
    template.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        render_model_card(report, REPO, template)
    assert str(caught.value).startswith(f"{template}:{line}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "content", ["# no metadata\n", "---\nlicense: [\n---\n", "---\n- a\n---\n"]
)
def test_a_template_must_make_a_page_that_the_hub_reads(
    report: Report, tmp_path: Path, content: str
) -> None:
    template = tmp_path / "mine.j2"
    template.write_text(content)
    with pytest.raises(InputError, match="metadata"):
        render_model_card(report, REPO, template)


def test_a_template_that_cannot_be_read_is_named(report: Report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        render_model_card(report, REPO, tmp_path / "none.j2")
    (tmp_path / "binary.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        render_model_card(report, REPO, tmp_path / "binary.j2")


def test_every_block_and_variable_is_documented(report: Report, tmp_path: Path) -> None:
    documented = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
    from zoopress.publishing import model_card

    context = model_card._context(report, REPO, None, [], [None], [])
    blocks = environment_for().get_template(DEFAULT_TEMPLATE).blocks
    missing = [name for name in [*context, *blocks] if f"`{name}`" not in documented]
    assert missing == []
