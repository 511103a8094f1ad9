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
    dense: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
) -> nn.Module:
    """Load a compressed model, ready to run, in evaluation mode.

    Args:
        place: the artifact: a folder, or a repository on the Hub as "org/name". A folder that
            exists comes first.
        revision: branch, tag or commit in that repository; its main branch by default.
        factory: for a model whose architecture is a Python function: that function, or
            "file.py:function" or "package.module:function". An artifact is never trusted to name
            code, so this must come from you.
        unpacking: which quantized weights become dense once and for all. "auto": those that nothing
            multiplies as they are, which would else be rebuilt in every call;
            "none": the least memory; "all": the original's memory and speed at any batch size.
        verify: whether to compare every file's SHA-256 first.
        progress: called with each tensor's name.
        runtime: what runs it: "eager", PyTorch as it comes; "compile", `torch.compile`;
            "onnxruntime"; "openvino"; one that a plugin brings; or "auto", the fastest of them
            here, timed at the first start and remembered (logged by `zoopress.runtimes`).
        example_inputs: what the model may be called with: a tensor [samples, …], a tuple of what it
            takes by position, or a dict of what it takes by name. With them a runtime's outputs are
            compared with those of the model as it is. A runtime that cannot do without takes the
            first call for an example.
        dense: whether to make an ordinary model of it, as `unpack` does.
        token: for the Hub, another than that of the environment; False for none.
        cache_dir: another cache of the Hub than that of the environment.
        subfolder: where in the repository, or in the folder, the artifact is.
        local_files_only: whether to take it from the Hub's cache alone, and make no request.

    Raises:
        ArtifactError: if the artifact is damaged, hostile, or needs a plugin or factory.
        HubError: if it cannot be fetched.
        DeploymentError: if the runtime cannot run it, or computes something else.
    """
    from zoopress.artifacts.again import Origin
    from zoopress.artifacts.artifact import load_artifact
    from zoopress.hub.artifacts import HubOptions, find_artifact
    from zoopress.runtimes import Call, Opened, start_or_defer

    if isinstance(factory, str):
        factory = load_callable(factory, Path.cwd())
    plugins = load_plugins()
    options = HubOptions(
        token=token, cache_dir=cache_dir, subfolder=subfolder, local_files_only=local_files_only
    )
    folder = find_artifact(place, revision, options)
    model, architecture, manifest = load_artifact(
        folder, plugins, factory, verify, progress, masks=False
    )
    model.module = architecture.finish(model.module)
    architecture.keep_savable(model.module, Origin(folder, manifest, architecture))
    if dense:
        unpack(model.module)
    example = None if example_inputs is None else Call.of(example_inputs)
    opened = Opened(model, architecture, manifest, folder, example, unpacking)
    return start_or_defer(runtime, opened, plugins)


def unpack(model: nn.Module) -> nn.Module:
    """Make an ordinary model of a compressed one, in place, for any tool to go on with.

    Packed weights become parameters; factored layers and the like become the layers again in whose
    place they stand, with the weights that those stand for. It computes the same up to rounding,
    and takes the memory of an uncompressed model of its sizes. What was pruned away stays so, and a
    normalization that was folded into a layer stays there, with one beside it that does nothing.

    Args:
        model: what `zoopress.load`, or `from_pretrained` of a compressed model, gave.

    Returns:
        The same model. Layers that have no dense form stay, and a warning names them.
    """
    import warnings

    from zoopress.models.packing import unpack as unpack_weights
    from zoopress.models.reading import fold_input_scales
    from zoopress.models.stand_in import merge

    unpack_weights(model, "all")
    _, left = merge(model)
    left += fold_input_scales(model)
    if left:
        warnings.warn(
            f"{len(left)} layers stay as they are, since they offer no dense weight in the place "
            f"of that of the layers before them: {', '.join(left[:5])}.",
            stacklevel=2,
        )
    for part in list(model.modules()):
        forget = vars(part).get("_zoopress_when_dense")
        if forget is not None and not left:
            forget()
    return model
