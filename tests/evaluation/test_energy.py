"""Energy: counters in a tree of files like Linux's, and the estimate by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from held_data import HeldTask, compare
from zoopress.coding.bits import pack_codes
from zoopress.evaluation import energy
from zoopress.evaluation.energy import Counter, find_counters, measure, weight_bytes_read
from zoopress.models.model import Model
from zoopress.plugins import Plugins


def write_zone(folder: Path, zone: str, name: str, energy: str, most: int = 999_999) -> Path:
    path = folder / zone
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    return path / "energy_uj"


class Tick(nn.Module):
    """Adds microjoules to a counter each time it runs."""

    def __init__(self, counter: Path, microjoules: int) -> None:
        super().__init__()
        self.counter, self.microjoules = counter, microjoules

    def forward(self, x: Tensor) -> Tensor:
        now = int(self.counter.read_text()) + self.microjoules
        self.counter.write_text(str(now % 1_000_000))
        return x


def test_counters_are_packages_and_memory_that_can_be_read(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", "package-0", "5")
    write_zone(tmp_path, "intel-rapl:0:0", "core", "5")
    write_zone(tmp_path, "intel-rapl:0:1", "dram", "5")
    write_zone(tmp_path, "intel-rapl:1", "psys", "5")
    write_zone(tmp_path, "intel-rapl:2", "package-1", "for the administrator")
    (tmp_path / "intel-rapl").mkdir()
    assert [counter.name for counter in find_counters(tmp_path)] == ["package-0", "dram"]
    assert find_counters(tmp_path / "none") == []


def test_a_counter_that_begins_again_goes_on_counting() -> None:
    counter = Counter("package-0", Path("x"), 1000)
    assert counter.joules(100, 400) == pytest.approx(300e-6)
    assert counter.joules(900, 50) == pytest.approx(150e-6)


def test_measured_energy_is_that_of_each_models_own_turns(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_ROUND_S", 0.01)
    file = write_zone(tmp_path, "intel-rapl:0", "package-0", "999000")
    comparison = compare(HeldTask(torch.ones(4, 3)), Tick(file, 400), Tick(file, 100), plugins)
    # A round must stay below the counter's range.
    monkeypatch.setattr(energy, "_repeat", lambda call: [call() for _ in range(3)] and 3)
    found = measure(comparison, lambda *_: None, tmp_path)
    assert found["measured"] is True
    assert found["original_joules"] == pytest.approx(400e-6 / 4)
    assert found["compressed_joules"] == pytest.approx(100e-6 / 4)
    assert found["ratio"] == pytest.approx(4)
    assert found["counters"] == ["package-0"]


def test_the_estimate_adds_arithmetic_and_weights_read(tmp_path: Path, plugins: Plugins) -> None:
    original = nn.Linear(100, 50, bias=False)
    model = Model(nn.Linear(100, 50, bias=False), plugins.layers)
    model.pack(
        next(iter(model.weights())),
        "quantized",
        {"bits": 4, "group_size": 100, "symmetric": True},
        {
            "codes": pack_codes(torch.zeros(50, 100, dtype=torch.uint8), 4),
            "scale": torch.ones(50, 1, dtype=torch.bfloat16),
        },
    )
    comparison = compare(HeldTask(torch.randn(4, 100)), original, model, plugins)
    found = measure(comparison, lambda *_: None, tmp_path)
    assert found["measured"] is False
    assert found["original_joules"] == pytest.approx((5000 * 4.6 + 20_000 * 160) * 1e-12)
    packed = 50 * 50 + 50 * 2
    assert found["compressed_weight_bytes_read"] == packed
    assert found["compressed_joules"] == pytest.approx((5000 * 4.6 + packed * 160) * 1e-12)
    json.dumps(found, allow_nan=False)


def test_half_precision_costs_less_arithmetic(tmp_path: Path, plugins: Plugins) -> None:
    layer = nn.Linear(10, 10, bias=False)
    half = nn.Linear(10, 10, bias=False).bfloat16()
    inputs = torch.randn(4, 10)
    found = energy._estimated(compare(HeldTask(inputs), layer, layer, plugins))
    assert found["original_joules"] == pytest.approx((100 * 4.6 + 400 * 160) * 1e-12)
    found = energy._estimated(compare(HeldTask(inputs.bfloat16()), half, half, plugins))
    assert found["original_joules"] == pytest.approx((100 * 1.5 + 200 * 160) * 1e-12)


class Tied(nn.Module):
    """Token ids to scores, by one table or two."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 8)
        self.output = nn.Linear(8, 100, bias=False)
        if tied:
            self.output.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.output(self.table(ids))
        return result


@pytest.mark.parametrize(("tied", "rows"), [(False, 5 + 100), (True, 100)])
def test_of_a_table_only_the_rows_looked_up_are_read(tied: bool, rows: int) -> None:
    ids = torch.arange(5)[None]
    assert weight_bytes_read(HeldTask(ids), Tied(tied), ids) == rows * 8 * 4
