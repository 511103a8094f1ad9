"""What latency reports, not how long anything takes."""

import json

import pytest
import torch
from torch import nn

from held_data import HeldTask
from zoopress.evaluation.latency import _p95, measure_latency
from zoopress.evaluation.machine import describe_machine


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (19, 19), (20, 19), (100, 95)])
def test_95_percent_of_the_times_are_at_most_the_95th_percentile(count: int, expected: int) -> None:
    assert _p95([float(time) for time in range(count, 0, -1)]) == expected


def test_a_row_tells_times_throughput_and_speed_up_of_a_batch_size() -> None:
    task = HeldTask(torch.randn(6, 4), batch_size=3)
    rows = measure_latency(task, nn.Linear(4, 4), nn.Linear(4, 2), (1, 3), seconds=0.01)
    assert [row["batch_size"] for row in rows] == [1, 3]
    for row in rows:
        assert row["backend"] == "eager"
        assert row["runs"] >= 3
        assert row["speed_up"] == row["original_ms_p50"] / row["compressed_ms_p50"]
        for model in ("original", "compressed"):
            assert row[f"{model}_ms_p95"] >= row[f"{model}_ms_p50"] > 0
            throughput = row[f"{model}_samples_per_second"] * row[f"{model}_ms_p50"] / 1e3
            assert throughput == pytest.approx(row["batch_size"])
    json.dumps(rows, allow_nan=False)


def test_a_batch_size_that_the_data_does_not_have_is_measured_once_as_it_is() -> None:
    task = HeldTask(torch.randn(2, 4))
    rows = measure_latency(task, nn.ReLU(), nn.ReLU(), (1, 8, 16), seconds=0.01)
    assert [row["batch_size"] for row in rows] == [1, 2]


def test_the_models_take_turns_on_the_same_inputs() -> None:
    calls: list[tuple[str, int]] = []

    class Named(nn.Module):
        def __init__(self, title: str) -> None:
            super().__init__()
            self.title = title

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append((self.title, x.data_ptr()))
            return x

    measure_latency(HeldTask(torch.randn(2, 4)), Named("a"), Named("b"), (2,), seconds=0.0)
    assert [title for title, _ in calls] == ["a", "b"] * (len(calls) // 2)
    assert len({address for _, address in calls}) == 1


def test_the_machine_is_described_in_plain_data() -> None:
    machine = describe_machine()
    assert machine.keys() >= {"processor", "cores", "threads", "memory_bytes", "system", "torch"}
    assert machine["memory_bytes"] > 1 << 20
    json.dumps(machine)
