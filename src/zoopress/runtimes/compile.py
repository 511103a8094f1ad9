"""`torch.compile`: operations are fused into kernels that a C++ compiler, or Triton, builds.

Source: Ansel et al. 2024, PyTorch 2, doi:10.1145/3620665.3640366.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import cast

import torch
from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.models.agreement import products
from zoopress.runtimes.runtime import Runtime


class Compile(Runtime):
    """Compiles a model when it is first called, and again for inputs of another number of axes."""

    recompiles = True
    fixes_batch = False  # what it has not compiled for, it compiles for
    libraries = ("torch",)

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse where nothing can be compiled, as without a C++ compiler."""
        device = next((t.device for t in artifact.model.tensors().values()), torch.device("cpu"))
        return why_not(device)

    def prepare(self, artifact: Opened) -> nn.Module:
        """Return a module that compiles itself when it is first called."""
        tensors = (*artifact.module.parameters(), *artifact.module.buffers())
        module = copy.deepcopy(artifact.module, {id(tensor): tensor for tensor in tensors})
        for layer, packed in products(module).values():
            if packed.kernel("linear"):
                # Traced, it would make its dense weight as a whole in every call.
                layer.forward = torch.compiler.disable(layer.forward)
        return cast(nn.Module, torch.compile(module))


@cache
def why_not(device: torch.device) -> str | None:
    """Say why `torch.compile` does not work on a device here, None if it does.

    It is tried on a sum: what it needs depends on machine and version of PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch itself imports then
            torch.compile(lambda x: (x + 1).cos())(torch.zeros(3, device=device))
    except Exception as error:  # of many kinds, few of them public
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return (
            f"torch.compile does not work here, not even on a sum ({reason[:400]}). Install a C++ "
            "compiler such as g++, or name one in the environment variable CXX; or use the runtime "
            "'eager'."
        )
    return None
