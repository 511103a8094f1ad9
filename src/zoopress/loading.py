"""Open a compressed model, from a folder or from the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.plugins import load_plugins
from zoopress.sources import load_callable

if TYPE_CHECKING:
    from torch import nn

    from zoopress.models.packing import Unpacking


def load(
    place: str | Path,
    revision: str | None = None,
    *,
    factory: Callable[..., Any] | str | None = None,
    unpacking: Unpacking = "auto",
    verify: bool = True,
    progress: Callable[[str], None] = lambda name: None,
    runtime: str = "eager",
    example_inputs: Any = None,
) -> nn.Module:
    """Load a compressed model, ready to run, in evaluation mode.

    Args:
        place: the artifact: a folder, or a repository on the Hub as "org/name". A folder that
            exists comes first.
        revision: branch, tag or commit in that repository; its main branch by default.
        factory: for a model whose architecture is a Python function: that function, or
            "file.py:function" or "package.module:function". An artifact is never trusted to name
            code, so this must come from you.
        unpacking: which quantized weights become dense once and for all. "auto": those that no
            low-bit kernel of this machine serves, which would else be rebuilt in every call;
            "none": the least memory; "all": the original's memory and speed at any batch size.
        verify: whether to compare every file's SHA-256 first.
        progress: called with each tensor's name.
        runtime: what runs it: "eager", PyTorch as it comes; "compile", `torch.compile`; or one that
            a plugin brings.
        example_inputs: what the model may be called with: a tensor [samples, …], a tuple of what it
            takes by position, or a dict of what it takes by name. With them a runtime's outputs are
            compared with those of the model as it is; some runtimes cannot do without.

    Raises:
        ArtifactError: if the artifact is damaged, hostile, or needs a plugin or factory.
        HubError: if it cannot be fetched.
        DeploymentError: if the runtime cannot run it, or computes something else.
    """
    from zoopress.artifacts.artifact import load_artifact
    from zoopress.hub.artifacts import find_artifact
    from zoopress.models.packing import unpack
    from zoopress.runtimes import Call, Opened, start

    if isinstance(factory, str):
        factory = load_callable(factory, Path.cwd())
    plugins = load_plugins()
    folder = find_artifact(place, revision)
    model, architecture, manifest = load_artifact(
        folder, plugins, factory, verify, progress, masks=False
    )
    unpack(model.module, unpacking)
    model.module = architecture.finish(model.module)
    example = None if example_inputs is None else Call.of(example_inputs)
    opened = Opened(model, architecture, manifest, folder, example)
    return start(runtime, opened, plugins).module
