"""A model's tensors as one file of NumPy arrays, packed weights as integers, scales, zero points.

FOLDER/weights.npz
    NAME               a tensor as it is; bfloat16, which NumPy lacks, as float32
    NAME.codes, …      a packed weight: (codes − zero_point) · scale is its matrix
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zoopress.exporters import Exporter, Opened
from zoopress.models.export_form import ExportForm
from zoopress.models.packing import packed_weights
from zoopress.models.weights import from_matrix

FILE = "weights.npz"


class NumpyArrays(Exporter):
    """Writes arrays that any language reads; the structure is the reader's business."""

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse floats that NumPy cannot hold exactly in a type of its own."""
        odd = {t.dtype for t in artifact.dense.state_dict().values() if "float8" in str(t.dtype)}
        if odd:
            return f"NumPy has no {odd.pop()}. Compress it without floats of 8 bits."
        return None

    def write(self, artifact: Opened, folder: Path) -> None:
        """Write each packed weight in its export form, everything else as it is."""
        arrays = {name: _array(t) for name, t in artifact.dense.state_dict().items()}
        for name, packed in packed_weights(artifact.module).items():
            form = packed.export_form()
            if form is None:
                continue
            del arrays[name]
            arrays[f"{name}.codes"] = _array(form.codes)
            arrays[f"{name}.scale"] = _array(form.scale)
            arrays[f"{name}.form"] = np.array([form.bits, _AXES.index(form.axis), _size(form)])
            if form.zero_point is not None:
                arrays[f"{name}.zero_point"] = _array(form.zero_point)
        np.savez(folder / FILE, **arrays)

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Fill a dense copy of the model from the file alone."""
        module = copy.deepcopy(artifact.dense)
        with np.load(folder / FILE, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        for name, packed in packed_weights(artifact.module).items():
            if f"{name}.codes" in tensors:
                form = _form(tensors, name)
                matrix = from_matrix(form.matrix(), packed.shape, packed.output_axis)
                tensors[name] = matrix.reshape(packed.stands_for or packed.shape)
        module.load_state_dict(tensors)
        return module


_AXES = (None, 0, 1)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _size(form: ExportForm) -> int:
    return form.group_size or 0


def _form(tensors: dict[str, Tensor], name: str) -> ExportForm:
    bits, axis, group_size = tensors.pop(f"{name}.form").tolist()
    return ExportForm(
        tensors.pop(f"{name}.codes"),
        bits,
        tensors.pop(f"{name}.scale"),
        tensors.pop(f"{name}.zero_point", None),
        _AXES[axis],
        group_size or None,
    )
