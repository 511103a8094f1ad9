"""Keys tell the code that results come from: each dependency, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.cells.cell import Cell, open_cell
from zoopress.errors import PluginError
from zoopress.identity import load_callable
from zoopress.identity.modules import files_of
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

TECHNIQUE = """
from zoopress import Config, Effects, Outcome, Technique, hookimpl
{imports}


class Mine(Technique[Config]):
    name = "{name}"
    family = "pruning"
    config_type = Config

    def effects(self):
        return Effects()

    def apply(self, model, context):
        {body}
        return Outcome(touched=[])


@hookimpl
def zoopress_techniques():
    return [Mine]
"""
LAYER = """
from zoopress import hookimpl

@hookimpl
def zoopress_layers():
    return {"shared_layer": "layer_code:Layer"}
"""


class Site:
    """A folder of distributions, each as if installed, or as if in work where it stands.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(
        self, distribution: str, files: dict[str, str], plugins: dict[str, str], version: str = "1"
    ) -> None:
        for name, text in files.items():
            self.write(name, text)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        points = "".join(f"{name} = {module}\n" for name, module in plugins.items())
        (info / "entry_points.txt").write_text(f"[zoopress]\n{points}")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def forget(self) -> None:
        """Let the next load be as in a new process."""
        for name, module in list(sys.modules.items()):
            known = vars(module)
            if str(self.folder) in f"{known.get('__file__')} {known.get('__path__')}":
                del sys.modules[name]
        files_of.cache_clear()


@pytest.fixture(params=["site-packages", "checkout"])
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Site]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Site(tmp_path / request.param)
    monkeypatch.syspath_prepend(str(made.folder))
    yield made
    made.forget()


Keys = Callable[..., tuple[str, ...]]


@pytest.fixture
def cell(tmp_path: Path, site: Site) -> Callable[[str], Cell]:
    """Give a function that opens the cell of a recipe as a new process would."""
    write_zoo(tmp_path / "zoo", width=8)

    def opened(recipe: str, forget: bool = True) -> Cell:
        if forget:
            site.forget()
        (tmp_path / "zoo" / "recipe.yaml").write_text(recipe)
        plugins = load_plugins()
        assert not plugins.broken
        card = load_card(str(tmp_path / "zoo" / "card.yaml"), plugins)
        read = load_recipe(str(tmp_path / "zoo" / "recipe.yaml"), plugins)
        return open_cell(card, read, Store(tmp_path / "store"), plugins)

    return opened


MINE = "stages: [{technique: mine}]"


def technique(imports: str, body: str = "pass", name: str = "mine") -> str:
    return TECHNIQUE.format(imports=imports, body=body, name=name)


PACKAGES: dict[str, tuple[dict[str, str], str, str]] = {
    "a sibling module": (
        {"mine.py": technique("import mine_helper"), "mine_helper.py": "A = 1"},
        "mine.py",
        "mine_helper.py",
    ),
    "a sibling's sibling": (
        {
            "mine.py": technique("from mine_helper import f"),
            "mine_helper.py": "def f():\n    from mine_far import B",
            "mine_far.py": "B = 1",
        },
        "mine.py",
        "mine_far.py",
    ),
    "another top-level package": (
        {
            "mine/__init__.py": "",
            "mine/plugin.py": technique("from mine_kernels import fast"),
            "mine_kernels/__init__.py": "",
            "mine_kernels/fast.py": "A = 1",
        },
        "mine/plugin.py",
        "mine_kernels/fast.py",
    ),
    "a namespace package": (
        {
            "acme/mine/__init__.py": "",
            "acme/mine/plugin.py": technique(
                "from acme.tools import scores\nfrom . import __doc__"
            ),
            "acme/tools/scores.py": "A = 1",
        },
        "acme/mine/plugin.py",
        "acme/tools/scores.py",
    ),
    "a relative import": (
        {
            "mine/__init__.py": "",
            "mine/deep/__init__.py": "",
            "mine/deep/plugin.py": technique("from ..scores import A"),
            "mine/scores.py": "A = 1",
        },
        "mine/deep/plugin.py",
        "mine/scores.py",
    ),
    "a package's own file": (
        {"mine/__init__.py": "", "mine/plugin.py": technique("")},
        "mine/plugin.py",
        "mine/__init__.py",
    ),
    "a name that is computed": (
        {
            "mine/__init__.py": "",
            "mine/plugin.py": technique("import importlib", "importlib.import_module(self.which)"),
            "mine/chosen.py": "A = 1",
        },
        "mine/plugin.py",
        "mine/chosen.py",
    ),
    "a name that is spelled": (
        {
            "mine.py": technique("import importlib", "importlib.import_module('mine_late')"),
            "mine_late.py": "A = 1",
        },
        "mine.py",
        "mine_late.py",
    ),
}


@pytest.mark.parametrize("case", PACKAGES)
def test_what_a_technique_imports_from_its_distribution_is_in_the_key(
    site: Site, cell: Callable[[str], Cell], case: str
) -> None:
    files, plugin, dependency = PACKAGES[case]
    unrelated = dependency.replace(".py", "_unrelated.py")
    if case == "a name that is computed":  # any module of the package may be meant
        unrelated = "beside.py"
    files = {**files, unrelated: "A = 1", "unrelated.py": "A = 1"}
    module = plugin.removesuffix(".py").replace("/", ".")
    site.install("zoopress-mine", files, {"mine": module})
    first = cell(MINE).keys
    for name in (unrelated, "unrelated.py"):
        site.write(name, "A = 2")
    assert cell(MINE).keys == first
    site.write(dependency, files[dependency] + "\nA = 2")
    second = cell(MINE).keys
    assert second != first
    site.write(plugin, files[plugin] + "\n# another version")
    assert cell(MINE).keys not in (first, second)


def test_what_is_only_imported_for_types_is_not_in_the_key(
    site: Site, cell: Callable[[str], Cell]
) -> None:
    imports = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mine_types"
    files = {"mine.py": technique(imports), "mine_types.py": "A = 1"}
    site.install("zoopress-mine", files, {"mine": "mine"})
    first = cell(MINE).keys
    site.write("mine_types.py", "A = 2")
    assert cell(MINE).keys == first


def test_a_distributions_version_is_in_the_key(site: Site, cell: Callable[[str], Cell]) -> None:
    site.install("zoopress-mine", {"mine.py": technique("")}, {"mine": "mine"})
    first = cell(MINE).keys
    shutil.rmtree(site.folder / "zoopress_mine-1.dist-info")
    site.install("zoopress-mine", {}, {"mine": "mine"}, version="2")
    assert cell(MINE).keys != first


def test_a_layer_of_another_distribution_is_in_the_key_of_techniques_that_name_it(
    site: Site, cell: Callable[[str], Cell]
) -> None:
    body = "model.replace('x', 'shared_layer', {}, {})"
    files = {"mine.py": technique("", body), "other.py": technique("", name="other")}
    site.install("zoopress-mine", files, {"mine": "mine", "other": "other"})
    layers = {"layers.py": LAYER, "layer_code.py": "import layer_math", "layer_math.py": "A = 1"}
    site.install("zoopress-layers", layers, {"layers": "layers"})
    other = MINE.replace("mine", "other")
    first = cell(MINE).keys, cell(other).keys
    assert cell(MINE).layers(cell(MINE).recipe.stages[0]) == {"shared_layer"}
    site.write("layer_math.py", "A = 2")
    second = cell(MINE).keys, cell(other).keys
    assert second[0] != first[0]
    assert second[1] == first[1]
    site.install("zoopress-layers", {}, {"layers": "layers"}, version="3")
    shutil.rmtree(site.folder / "zoopress_layers-1.dist-info")
    third = cell(MINE).keys, cell(other).keys
    assert third[0] not in (first[0], second[0])
    assert third[1] == first[1]


def test_what_recovers_from_a_stage_is_in_its_key(site: Site, cell: Callable[[str], Cell]) -> None:
    code = technique("import recovery_helper", name="recovering")
    code = code.replace("    config_type", "    recovers = True\n    config_type")
    files = {"recovering.py": code, "recovery_helper.py": "A = 1"}
    site.install("zoopress-recovering", files, {"recovering": "recovering"})
    stage = "{technique: magnitude_pruning, sparsity: 0.5, recovery: {technique: recovering}}"
    recipe = f"stages: [{{technique: neuron_pruning, sparsity: 0.25}}, {stage}]"
    first = cell(recipe).keys
    site.write("recovery_helper.py", "A = 2")
    second = cell(recipe).keys
    assert second[0] == first[0]
    assert second[1] != first[1]


def test_a_task_a_dataset_a_source_and_a_measure_are_in_keys(
    site: Site, cell: Callable[[str], Cell], tmp_path: Path
) -> None:
    hooks = "from zoopress import hookimpl\n" + "".join(
        f"@hookimpl\ndef zoopress_{hook}():\n    return {{{name!r}: {reference!r}}}\n"
        for hook, name, reference in (
            ("tasks", "guessing", "my_task:Guessing"),
            ("datasets", "made", "my_dataset:made"),
            ("sources", "shelf", "my_source:shelf"),
            ("measures", "colour", "my_measure:colour"),
        )
    )
    files = {
        "my_hooks.py": hooks,
        "my_task.py": "import my_task_helper\n"
        "from zoopress_zoo.tasks.fidelity import FidelityTask\n"
        "class Guessing(FidelityTask):\n    name = 'guessing'",
        "my_task_helper.py": "A = 1",
        "my_dataset.py": "import my_dataset_helper\ndef made(card): ...",
        "my_dataset_helper.py": "A = 1",
        "my_source.py": "import my_source_helper\nfrom pathlib import Path\n"
        "from zoopress.sources import SourceFiles\n"
        "def shelf(card):\n"
        "    return SourceFiles(Path(card.root), 'local', ('weights.safetensors',))",
        "my_source_helper.py": "A = 1",
        "my_measure.py": "import my_measure_helper\ndef colour(comparison, progress): ...",
        "my_measure_helper.py": "A = 1",
    }
    site.install("zoopress-hooks", files, {"hooks": "my_hooks"})
    card = tmp_path / "zoo" / "card.yaml"
    text = card.read_text().replace("source: path:", "source: shelf:")
    card.write_text(text + "task: guessing\nmeasures: [colour]\n")
    recipe = "stages: [{technique: magnitude_pruning, sparsity: 0.5}]"
    before = cell(recipe).store_keys
    for part in ("task", "source", "measure"):
        site.write(f"my_{part}_helper.py", "A = 2")
        after = cell(recipe).store_keys
        assert after[1] != before[1], part
        assert (after[0] == before[0]) == (part == "measure"), part
        before = after
    site.write("my_dataset_helper.py", "A = 2")
    assert cell(recipe).store_keys == before
    start = text.index("  random:")
    card.write_text(text[:start] + "  dataset: made:up\ntask: guessing\n")
    before = cell(recipe).store_keys
    site.write("my_dataset_helper.py", "A = 3")
    assert not set(cell(recipe).store_keys) & set(before)


def test_a_technique_that_was_edited_after_it_was_imported_is_refused(
    site: Site, cell: Callable[..., Cell]
) -> None:
    files = {"mine.py": technique("import mine_helper"), "mine_helper.py": "A = 1"}
    site.install("zoopress-mine", files, {"mine": "mine"})
    first = cell(MINE).keys
    assert cell(MINE, forget=False).keys == first
    site.write("mine_helper.py", "A = 2")
    with pytest.raises(PluginError, match=r"mine_helper\.py was edited after .* new process"):
        _ = cell(MINE, forget=False).keys
    assert cell(MINE).keys != first


FACTORY = """
from torch import nn
from parts import layers

def build(width=96):
    return layers.made(width)
"""
PARTS = """
from torch import nn
from .sizes import OUT

def made(width):
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, OUT))
"""


def test_what_a_factory_imports_from_its_folder_is_in_the_key_and_edits_take_hold_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, recipe="stages: [{technique: magnitude_pruning, sparsity: 0.5}]")
    made = {
        "networks.py": FACTORY,
        "parts/__init__.py": "",
        "parts/layers.py": PARTS,
        "parts/sizes.py": "OUT = 10",
        "parts/other.py": "A = 1",
        "other.py": "A = 1",
    }
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def opened() -> tuple[tuple[str, ...], int]:
        plugins = load_plugins()
        card = load_card(str(tmp_path / "card.yaml"), plugins)
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
        found = open_cell(card, recipe, Store(tmp_path / "store"), plugins)
        module: Any = found.original.architecture.build()
        return found.keys, module[-1].out_features

    first, size = opened()
    assert size == 10
    for name in ("parts/other.py", "other.py"):
        (tmp_path / name).write_text("A = 2")
    assert opened() == (first, 10)
    # As many bytes, in the same second: neither bytecode nor a module in memory may win.
    (tmp_path / "parts" / "sizes.py").write_text("OUT = 11")
    second, size = opened()
    assert size == 11
    assert second != first
    (tmp_path / "parts" / "sizes.py").write_text("OUT = 10")
    assert opened() == (first, 10)
    # A copy may bring an old time along, or one to come.
    for number, moment in ((12, 1.0), (13, time.time() + 3600)):
        (tmp_path / "parts" / "sizes.py").write_text(f"OUT = {number}")
        os.utime(tmp_path / "parts" / "sizes.py", (moment, moment))
        keys, size = opened()
        assert size == number
        assert keys not in (first, second)


def test_a_factory_may_import_its_neighbours_when_it_is_called(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    (tmp_path / "later.py").write_text("OUT = 7")
    (tmp_path / "networks.py").write_text(
        "def build():\n"
        "    from torch import nn\n"
        "    from later import OUT\n"
        "    return nn.Linear(2, OUT)\n"
    )
    assert load_callable("networks.py:build", tmp_path)().out_features == 7


def test_a_factory_that_is_edited_amid_a_run_keeps_its_model_or_is_refused(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    plugins = load_plugins()
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    kept, late = (
        open_cell(card, recipe, Store(tmp_path / "store"), plugins).original.architecture
        for _ in range(2)
    )
    first = kept.build()
    text = (tmp_path / "networks.py").read_text()
    (tmp_path / "networks.py").write_text(text.replace("nn.ReLU()", "nn.Tanh()"))
    assert repr(kept.build()) == repr(first)
    with pytest.raises(PluginError.__base__, match="was edited while this run went on"):
        late.build()


def test_neighbours_of_one_name_in_two_folders_are_two_things(tmp_path: Path) -> None:
    sizes = {}
    for name, size in (("one", 3), ("two", 4)):
        folder = tmp_path / name
        write_zoo(folder)
        (folder / "networks.py").write_text(
            "from torch import nn\nfrom neighbour import SIZE\n\n"
            "def build(width):\n    return nn.Linear(SIZE, 1)"
        )
        (folder / "neighbour.py").write_text(f"SIZE = {size}")
        plugins = load_plugins()
        card = load_card(str(folder / "card.yaml"), plugins)
        recipe = load_recipe(str(folder / "recipe.yaml"), plugins)
        found = open_cell(card, recipe, Store(tmp_path / "store"), plugins)
        module: Any = found.original.architecture.build()
        sizes[name] = module.in_features
    assert sizes == {"one": 3, "two": 4}


def test_inputs_of_a_function_and_what_it_imports_are_in_the_key(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    card = (tmp_path / "card.yaml").read_text()
    start = card.index("  random:")
    (tmp_path / "card.yaml").write_text(card[:start] + "  inputs: samples.py:made\n")
    (tmp_path / "samples.py").write_text("import scale\n\ndef made(): ...")
    (tmp_path / "scale.py").write_text("SCALE = 1")

    def keys() -> tuple[str, ...]:
        plugins = load_plugins()
        card = load_card(str(tmp_path / "card.yaml"), plugins)
        recipe = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
        return open_cell(card, recipe, Store(tmp_path / "store"), plugins).keys

    first = keys()
    (tmp_path / "scale.py").write_text("SCALE = 2")
    assert keys() != first


CORE = """
import json, sys
from pathlib import Path
from zoopress.identity import (
    Parts, core_code, every_stage_code, report_code, statistics_code
)
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe

plugins = load_plugins()
parts = Parts(plugins)
stages = load_recipe(sys.argv[1], plugins).stages


def identities():
    pruning, trained = (parts.stage(stage.techniques, stage.as_dict()) for stage in stages)
    return {
        "every stage": every_stage_code(),
        "pruning": pruning,
        "trained": trained,
        "report": report_code(),
        "statistics": statistics_code(),
        "energy": parts.registered("measures", "energy"),
        "probe": core_code(("zoopress.estimates.probe",), within=("estimates",)),
    }


before, found = identities(), {}
for name in sys.argv[2:]:
    with (Path(sys.argv[1]).parent / "zoopress" / name).open("a") as file:
        file.write("\\n# edited")
    after = identities()
    found[name] = [key for key in after if after[key] != before[key]]
    before = after
assert "torch" not in sys.modules
print(json.dumps(found))
"""


def test_of_the_core_what_a_result_depends_on_is_in_its_key(tmp_path: Path) -> None:
    """Edit a copy of the core, none of which but its contracts is imported."""
    import zoopress

    shutil.copytree(Path(zoopress.__file__).parent, tmp_path / "zoopress")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "stages:\n  - {technique: magnitude_pruning, sparsity: 0.5}\n"
        "  - {technique: fine_tuning, epochs: 1}\n"
    )
    expected = {
        "commands/zoo.py": [],
        "reports/page.py": [],
        "progress/boards.py": [],
        "training/loop.py": ["trained", "probe"],
        "statistics/named/zeros.py": ["statistics", "probe"],
        "artifacts/artifact.py": ["every stage", "trained", "probe"],
        "coding/bits.py": ["every stage", "trained", "report", "statistics", "energy", "probe"],
        "evaluation/energy.py": ["energy"],
        "evaluation/latency.py": ["report"],
        "evaluation/fidelity.py": ["every stage", "report", "probe"],
        "pipeline/workbench.py": ["every stage"],
        "estimates/probe_models.py": ["probe"],
    }
    done = subprocess.run(
        [sys.executable, "-c", CORE, str(recipe), *expected],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_layer_whose_name_is_put_together_is_refused_with_the_remedy(
    site: Site, cell: Callable[[str], Cell], tmp_path: Path
) -> None:
    from zoopress.errors import StageError
    from zoopress.pipeline.compress import compress

    body = (
        "import torch; weight = next(model.weights()); "
        "model.replace(weight.path, 'shared' + '_layer', {}, {})"
    )
    site.install("zoopress-mine", {"mine.py": technique("", body)}, {"mine": "mine"})
    layer = (
        "from torch import nn\nclass Layer(nn.Module):\n    @classmethod\n"
        "    def from_module(cls, module):\n        return cls()\n"
        "    def forward(self, x):\n        return x"
    )
    site.install("zoopress-layers", {"layers.py": LAYER, "layer_code.py": layer}, {"l": "layers"})
    opened = cell(MINE)
    with pytest.raises(StageError, match="'shared_layer', whose name its code puts together"):
        compress(
            *(opened.original.card, opened.recipe, tmp_path / "out", opened.store),
            plugins=opened.plugins,
        )
