"""Files of tensors: everything that safetensors writes is read, aligned and without a mapping."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from zoopress.artifacts.tensor_files import open_tensors
from zoopress.errors import ArtifactError

DTYPES = sorted(safetensors.torch._TYPES.values(), key=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_read_as_safetensors_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    octets = torch.randint(0, 2, (5 * 3 * dtype.itemsize,), generator=generator).to(torch.uint8)
    tensor = octets.view(dtype).reshape(5, 3)
    # The first has one byte, so that what follows starts anywhere.
    tensors = {"a": torch.ones(1, dtype=torch.bool), "matrix": tensor, "scalar": tensor[0, 0]}
    tensors["empty"] = tensor[:0]
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with open_tensors(tmp_path, "safetensors", ["model.safetensors"]) as readers:
        assert readers.keys() == tensors.keys()
        for name, expected in tensors.items():
            assert readers[name].itemsize(name) == expected.itemsize
            found = readers[name].read(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.reshape(-1).view(torch.uint8).tolist() == (
                expected.reshape(-1).view(torch.uint8).tolist()
            )
            assert found.data_ptr() % 64 == 0  # torch's low-bit kernels crash on other memory


def test_a_file_that_is_cut_off_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1000)}, path)
    with open_tensors(tmp_path, "safetensors", [path.name]) as readers:
        with path.open("r+b") as stream:
            stream.truncate(1000)
        with pytest.raises(ArtifactError, match="'a': the file became shorter"):
            readers["a"].read("a")


def test_a_shape_that_torch_cannot_hold_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}'
    content = len(header).to_bytes(8, "little") + header
    (tmp_path / "model.safetensors").write_bytes(content)
    with (
        open_tensors(tmp_path, "safetensors", ["model.safetensors"]) as readers,
        pytest.raises(ArtifactError, match="tensor 'a'"),
    ):
        readers["a"].read("a")
