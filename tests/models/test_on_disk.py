"""Tensors that lie in files: the same values, given back when too much of them is resident."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from zoopress.models.on_disk import LEAST_BYTES, on_disk, settled, weights_on_disk

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="only Linux tells which pages are written"
)


def resident(tensor: torch.Tensor) -> int:
    """Return how many of a tensor's bytes are in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    for number, line in enumerate(lines):
        start, dash, rest = line.partition(" ")[0].partition("-")
        if dash and int(start, 16) <= tensor.data_ptr() < int(rest, 16):
            return next(1024 * int(at.split()[1]) for at in lines[number:] if at.startswith("Rss"))
    raise AssertionError("it is not mapped")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_tensor_in_a_file_has_its_values(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(300, 1001) * 3).to(dtype)
    assert settled(tensor) is tensor
    with weights_on_disk(tmp_path / "new", 1 << 30):
        there = settled(tensor.T)
        assert there.data_ptr() != tensor.data_ptr()
        assert settled(there) is there
        assert there.is_contiguous()
        assert there.dtype == dtype
        torch.testing.assert_close(there, tensor.T, rtol=0, atol=0)
        small = torch.zeros(LEAST_BYTES - 1, dtype=torch.uint8)
        assert settled(small) is small
    assert on_disk() is None
    assert not list((tmp_path / "new").iterdir())
    torch.testing.assert_close(there, tensor.T, rtol=0, atol=0)  # it stays after the end


def test_pages_are_given_back_but_for_written_ones(tmp_path: Path) -> None:
    with weights_on_disk(tmp_path, 1 << 40) as disk:
        read, written = (settled(torch.full((1 << 20,), 1.0)) for _ in range(2))
        assert read.sum() == written.sum() == 1 << 20
        written[7] = 5.0
        assert min(map(resident, (read, written))) > 1_000_000
        disk.release()
        assert resident(read) < 100_000
        assert written[7] == 5.0
        assert read.sum() == 1 << 20


def test_a_module_moves_with_its_ties(tmp_path: Path) -> None:
    one = nn.Linear(200, 200)
    module = nn.Sequential(one, nn.Linear(200, 200), nn.BatchNorm1d(40_000))
    module[1].weight = one.weight
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with weights_on_disk(tmp_path, 1 << 30) as disk:
        disk.adopt(module)
        assert module[1].weight is one.weight
        addresses = [tensor.data_ptr() for tensor in module.state_dict().values()]
        disk.adopt(module)  # what lies there stays
        assert addresses == [tensor.data_ptr() for tensor in module.state_dict().values()]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_much_that_is_read_is_given_back_meanwhile(tmp_path: Path) -> None:
    with weights_on_disk(tmp_path, 1) as disk:  # as little as there may be
        tensors = [settled(torch.zeros(1 << 21, dtype=torch.uint8)) for _ in range(40)]
        for _ in range(3):
            for tensor in tensors:
                assert not tensor.any()
        disk.release()
        assert sum(map(resident, tensors)) < 1 << 22
