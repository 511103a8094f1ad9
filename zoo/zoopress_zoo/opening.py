"""Whether transformers, alone, opens a checkpoint as the model that it was written from.

Asked before a result is called native: a config that builds the right shapes may still mean
something else, and transformers renames tensors while it loads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress_zoo.transformers_config import library, make_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_MOST_WORK = 5e10
"""Multiplications that comparing outputs on long inputs may take; above it, tensors alone are."""


def opens_alike(
    core: nn.Module, config: dict[str, Any], config_file: Path, sizes: Collection[int]
) -> bool:
    """Tell whether transformers opens a model's tensors with a config, and computes the same.

    The inputs are longer than every size that the config was changed for, so that a limit or a
    window that was changed along shows.

    Args:
        core: the model.
        config: the config that is to say what it is.
        config_file: the config.json that it was built from.
        sizes: the sizes before and after.
    """
    import torch

    kind: Any = type(core)
    with tempfile.TemporaryDirectory(prefix="zoopress-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write(core, folder)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            opened, info = kind.from_pretrained(
                folder,
                config=make_config(kind, config, config_file),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                dtype=next((p.dtype for p in core.parameters() if p.is_floating_point()), None),
                generation_config=library().GenerationConfig(),
            )
        except Exception:  # whatever the library makes of it: it does not open it
            return False
    if any(info.get(what) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return False
    tensors = dict(opened.named_parameters(remove_duplicate=False))
    for path, parameter in core.named_parameters(remove_duplicate=False):
        if path not in tensors or not torch.equal(tensors[path].cpu(), parameter.detach().cpu()):
            return False
    return _same_on_long_inputs(core, opened.eval(), sizes)


def _write(core: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for name, tensor in core.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights once, as transformers writes them
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _same_on_long_inputs(core: nn.Module, opened: nn.Module, sizes: Collection[int]) -> bool:
    import torch

    device = next(core.parameters()).device
    opened = opened.to(device)
    for length in _lengths(sizes):
        inputs = _tokens(core, length)
        work = length * sum(p.numel() for p in core.parameters())
        if inputs is None or work > _MOST_WORK:
            continue
        training = core.training
        core.eval()
        try:
            with torch.inference_mode():
                wanted = _outputs(core(**_on(inputs, device)))
                found = _outputs(opened(**_on(inputs, device)))
        except Exception:  # longer than its positions, or it takes more than tokens: a shorter one
            continue
        finally:
            core.train(training)
        return len(wanted) == len(found) and all(map(_close, wanted, found))
    return True


def _lengths(sizes: Collection[int]) -> Iterator[int]:
    for size in sorted(sizes, reverse=True):
        yield size + 8


def _tokens(core: Any, length: int) -> dict[str, Tensor] | None:
    """Return tokens for a model that takes them, and for its decoder; None for another."""
    import torch

    try:
        config = core.config.get_text_config(decoder=True)
    except ValueError:  # of several parts that read text, none comes first
        return None
    vocabulary = getattr(config, "vocab_size", None)
    if getattr(core, "main_input_name", "") != "input_ids" or type(vocabulary) is not int:
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (1, length), generator=generator)
    both = getattr(core.config, "is_encoder_decoder", False)
    return {"input_ids": ids, **({"decoder_input_ids": ids} if both else {})}


def _on(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def _outputs(output: Any) -> list[Tensor]:
    from zoopress.dependencies.trace import tensors_in

    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    first, second = first.double(), second.double()
    return bool((first - second).norm() <= 1e-5 * first.norm() + 1e-12)
