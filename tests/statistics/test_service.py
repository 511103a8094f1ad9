"""What is measured once is kept; what changes is measured anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statistics_models import normal, seeded_model, service
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.statistics import STATISTICS, Shelf, Statistic, Statistics
from zoopress.statistics.named.histograms import InputHistogram
from zoopress.statistics.named.second_moments import InputSecondMoments
from zoopress.store import Store
from zoopress.store.collect import Policy
from zoopress.store.upkeep_local import collect_local, list_local
from zoopress.testing import context_for, tiny_card


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


BATCHES = [normal(6, 5), normal(3, 5, seed=2)]


class Counted:
    """Counts how often a service runs its model."""

    def __init__(self, asked: Statistics) -> None:
        self.calls, self._call = 0, asked.call
        asked.call = self

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return self._call(module, batch)


def test_all_that_is_asked_together_takes_one_pass() -> None:
    asked = service(BATCHES)
    counted = Counted(asked)
    values = [name for name in STATISTICS if name.startswith(("input", "output", "unit"))]
    found = asked.measure(seeded_model(network()), values)
    assert counted.calls == len(BATCHES)
    assert [each.statistic.name for each in found] == values


def test_a_budget_takes_more_passes_and_gives_the_same() -> None:
    told: list[float] = []
    asked = service(BATCHES, told=told)
    counted = Counted(asked)
    names = ["input_second_moments", "output_means", "output_histogram"]
    model = seeded_model(nn.Sequential(network(), nn.Linear(3, 3)))
    whole = asked.measure(model, names)
    assert counted.calls == 2
    parts = asked.measure(model, names, budget_bytes=1)
    assert counted.calls == 2 + 3 * 2
    for one, other in zip(whole, parts, strict=True):
        for name in one:
            for key, tensor in one[name].results().items():
                assert torch.equal(tensor, other[name][key])
    assert told == sorted(told[:2]) + sorted(told[2:])
    assert told[-1] == 1
    gradients = service(BATCHES).of(model, "diagonal_curvature", budget_bytes=1)
    together = service(BATCHES).of(model, "diagonal_curvature")
    for name in gradients:
        torch.testing.assert_close(gradients[name].value, together[name].value)


@pytest.mark.parametrize("stored", [False, True])
def test_nothing_is_measured_twice(tmp_path: Path, stored: bool) -> None:
    store = Store(tmp_path) if stored else None
    shelf = Shelf("data", store)
    model = seeded_model(network())
    asked = service(BATCHES, shelf=shelf)
    counted = Counted(asked)
    first = asked.of(model, "input_norms")
    again = asked.of(model, "input_norms")
    assert counted.calls == 2
    asked.shelf = Shelf("data", store)  # as in another process
    third, _ = asked.measure(model, ["input_norms", InputHistogram()])
    assert counted.calls == 4  # of the histogram, and of the norms where nothing was stored
    asked.of(model, "input_norms")
    assert counted.calls == 4
    for name in first:
        for other in (again, third):
            assert torch.equal(first[name].value, other[name].value)
            assert first[name].seen == other.seen(name) == 9
            assert torch.equal(first[name].spread(), other[name].spread())


def test_every_statistic_comes_back_from_the_store_as_it_went(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 2))
    model = seeded_model(module)
    tokens = [torch.tensor([[0, 3], [3, 3]])]
    made = service(tokens, shelf=Shelf("data", Store(tmp_path)))
    found = made.measure(model, list(STATISTICS), budget_bytes=1)
    asked = service(tokens, shelf=Shelf("data", Store(tmp_path)))
    counted = Counted(asked)
    again = asked.measure(model, list(STATISTICS))
    assert counted.calls == 0
    for one, other in zip(found, again, strict=True):
        for name in one:
            assert one.seen(name) == other.seen(name)
            layer = one.get(name)
            if layer is not None:
                assert torch.equal(layer.reached, other[name].reached)
                for key, tensor in layer.results().items():
                    assert torch.equal(tensor.nan_to_num(), other[name][key].nan_to_num())


CHANGES: dict[str, Any] = {
    "a weight": lambda m: m.module[2].weight.data[0, 0].add_(1),
    "a mask": lambda m: m.masks.update({"0.weight": torch.ones(4, 5, dtype=torch.bool)}),
    "a bias": lambda m: m.module[0].bias.data.add_(1),
    "a module": lambda m: m.module.__setitem__(1, nn.GELU()),
    "an argument": lambda m: m.module.__setitem__(1, nn.LeakyReLU(0.2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_measured_anew(tmp_path: Path, change: str) -> None:
    shelf = Shelf("data", Store(tmp_path))
    model = seeded_model(network())
    asked = service(BATCHES, shelf=shelf)
    counted = Counted(asked)
    asked.of(model, "input_norms")
    with torch.no_grad():
        CHANGES[change](model)
    asked.of(model, "input_norms")
    assert counted.calls == 4


def test_other_data_arguments_and_weights_are_measured_anew(tmp_path: Path) -> None:
    model = seeded_model(network())
    asked = service(BATCHES, shelf=Shelf("data", Store(tmp_path)))
    counted = Counted(asked)
    asked.of(model, InputSecondMoments(4))
    asked.of(model, InputSecondMoments(5))
    assert counted.calls == 4
    asked.of(model, InputSecondMoments(5), ["0.weight"])
    assert counted.calls == 6
    asked.shelf = Shelf("other data", Store(tmp_path))
    asked.of(model, InputSecondMoments(4))
    assert counted.calls == 8


def test_code_of_a_statistic_is_in_its_key(tmp_path: Path, monkeypatch: Any) -> None:
    from zoopress.statistics import shelf as shelves

    file = tmp_path / "peaks.py"
    text = _own_statistic()
    keys = []
    for factor in ("", "2 * "):
        file.write_text(text.replace('state["peaks"]}', f'{factor}state["peaks"]}}'))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "peaks", raising=False)
        shelves.code_digest.cache_clear()
        module = __import__("importlib").import_module("peaks")
        keys.append(Shelf("data").key("state", module.InputPeaks(), ["0.weight"], 0))
    assert keys[0] != keys[1]


def test_the_store_collects_statistics(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = service(BATCHES, shelf=Shelf("data", store))
    found = asked.of(seeded_model(network()), "input_norms")
    (entry,) = list_local(store.local)
    assert entry.record["statistic"] == "input_norms"
    done = collect_local(store.local, Policy(max_age_s=-1.0, grace_s=-1.0))
    assert done.removed == [entry.key]
    assert found["0"].seen == 9  # who has it goes on
    assert not list(list_local(store.local))


def test_two_stages_and_two_runs_share_what_is_measured(tmp_path: Path) -> None:
    """Through `compress`: the store of a run holds them, and another recipe finds them."""
    from zoopress.config import Config
    from zoopress.pipeline.compress import compress
    from zoopress.plugins import hookimpl, load_plugins
    from zoopress.recipes import Recipe, Stage
    from zoopress.techniques import Effects, Outcome, Technique

    calls = []

    class ShrinkConfig(Config):
        scale: float = 0.5

    class Shrink(Technique[ShrinkConfig]):
        """Scale the largest column, by the data."""

        name = "shrink"
        family = "pruning"
        config_type = ShrinkConfig
        needs = frozenset({"calibration"})

        def effects(self) -> Effects:
            return Effects()

        def apply(self, model: Model, context: Any) -> Outcome:
            plain = context.call

            def call(module: nn.Module, batch: Any) -> Tensor:
                calls.append(self.config.scale)
                result: Tensor = plain(module, batch)
                return result

            context.call = call
            found = context.statistics.of(model, "input_norms")
            weight = next(weight for weight in model.weights() if found.seen(weight))
            with torch.no_grad():
                weight.parameter.mul_(self.config.scale)
            return Outcome([weight.name], shrinks=False)

    class Plugin:
        @hookimpl
        def zoopress_techniques(self) -> list[Any]:
            return [Shrink]

    plugins = load_plugins(extra={"shrink": Plugin()})
    card = tiny_card("cnn", tmp_path / "card")
    store = Store(tmp_path / "store")
    for scale in (0.5, 0.9):
        recipe = Recipe("test", (Stage(Shrink(ShrinkConfig(scale=scale))),))
        compress(card, recipe, tmp_path / f"out{scale}", store, plugins)
    assert calls == [0.5, 0.5]  # two batches, once


def test_contexts_of_tests_have_statistics(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path / "card")
    context = context_for(card, tmp_path / "context")
    from zoopress.plugins import load_plugins
    from zoopress.testing.tiny import built

    model = Model(built(card, load_plugins()))
    found = context.statistics.of(model, "input_norms")
    assert found.seen("encoder.layers.0.self_attn.in_proj_weight") == 16 * 12
    assert context.statistics.of(model, "input_norms").layers is found.layers


def _own_statistic() -> str:
    page = Path(__file__).parents[2] / "docs" / "statistics.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if "class InputPeaks" in block)


def test_a_statistic_of_ones_own() -> None:
    space: dict[str, Any] = {"__name__": __name__}
    exec(_own_statistic(), space)
    peaks: Statistic = space["InputPeaks"]()
    found = service(BATCHES, shelf=Shelf("data")).of(seeded_model(network()), peaks)
    x = torch.cat(BATCHES)
    torch.testing.assert_close(found["0"].value, x.abs().amax(0))
    torch.testing.assert_close(found["0"].spread(), x.abs().amax(0).expand(4, 5))
    peaks.odd = object()  # type: ignore[attr-defined]
    with pytest.raises(StageError, match="no plain data"):
        service(BATCHES, shelf=Shelf("data")).of(seeded_model(network()), peaks)


def test_the_page_has_every_statistic_with_its_shape() -> None:
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", page, re.M)
    assert [name for name, _, _ in rows] == list(STATISTICS)
    sizes = {"in": 5, "out": 4, "bins": 2048, "bins + 1": 2049}
    found = service(BATCHES).measure(seeded_model(network()), list(STATISTICS))
    for (name, shapes, spread), each in zip(rows, found, strict=True):
        told = [
            tuple(sizes[size] for size in shape.split(", "))
            for shape in re.findall(r"\[([^\]]*)\]", shapes)
        ]
        for tensor in each["0"].results().values():
            assert tuple(tensor.shape) in told, name
        if spread == "no":
            with pytest.raises(StageError, match="cannot be spread"):
                each["0"].spread()
        else:
            key = next(iter(each["0"].results()))
            assert each["0"].spread(key).shape == (4, 5)
