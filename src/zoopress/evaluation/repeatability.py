"""Does a model equal itself: called twice, and built anew?

Asked of the original, before anything is compared with it. What it cannot do itself is no fault of
a technique.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import SourceError
from zoopress.evaluation.fidelity import Run, call_observed
from zoopress.evaluation.observed import Observed
from zoopress.models.caches import caches_forgotten
from zoopress.models.outputs import relative_difference
from zoopress.tasks import Task

SAME = 1e-5
"""Outputs that differ by no more, relative to the largest value, are the same."""
_FLIPPED = 0.01
"""Share of integers that may differ, where the numbers that they were taken from hardly do."""
_MOST_NAMES = 3


def difference(one: Observed, other: Observed) -> float:
    """Return the largest relative difference of two calls' outputs; infinite if forms differ."""
    if one.named.keys() != other.named.keys() or one.kinds != other.kinds:
        return float("inf")
    return max(
        (_difference(one.kinds[name], a, other.named[name]) for name, a in one.named.items()),
        default=0.0,
    )


def _difference(kind: str, one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if kind in ("integer", "boolean"):
        share = float((one != other).double().mean()) if one.numel() else 0.0
        return share if share > _FLIPPED else 0.0
    return relative_difference(one, other)


def check_repeats(task: Task, module: nn.Module, run: Run) -> bool:
    """Say whether a model's outputs are random, which a seed makes the same.

    Args:
        task: runs it.
        module: the original.
        run: what it made of the test split, with the usual seed.

    Raises:
        SourceError: if it gives other outputs each time, whatever the seed.
    """
    batch, first = task.batches("test")[0], run.observed[0]

    def again(seed: int) -> float:
        return difference(first, call_observed(task, module, batch, seed, forget=False))

    with caches_forgotten(module):
        # Twice: what the first of them keeps shows in the second.
        if max(again(1), again(2)) <= SAME:
            return False
        before = {name: _copy(value) for name, value in plain_values(module, buffers=True)}
        found = again(0)
        after = dict(plain_values(module, buffers=True))
    if found <= SAME:
        return True
    kept = [name for name, value in after.items() if not _equal(value, before.get(name))]
    cause = (
        f"it keeps something from one call to the next: {_listed(kept)} changed in a call. Let "
        "forward start from the same state each time, as by a local variable"
        if kept
        else "it draws random numbers from a generator of its own, or looks at what is not among "
        "its inputs. Switch the randomness off in evaluation mode (model.eval()), or draw from "
        "torch's global generator"
    )
    raise SourceError(
        f"The original {task.card.name} gives other outputs when it is called again with the same "
        f"inputs (relative difference {found:.2g}), so nothing can be compared with it: {cause}."
    )


def check_rebuilt(
    task: Task,
    built: nn.Module,
    stored: Callable[[], nn.Module],
    without_values: Mapping[str, Any],
    original: nn.Module,
    run: Run,
    thorough: bool = False,
) -> None:
    """Refuse a model that is another one each time it is built from its files.

    Args:
        task: runs it.
        built: the original, built and loaded anew; not run yet.
        stored: gives the original as it is after it was saved and loaded; asked where values that
            are neither parameters nor buffers come out otherwise without memory, or if `thorough`.
        without_values: the `plain_values` of the module as it is built for an artifact.
        original: the module that the run was made with.
        run: what it made of the test split.
        thorough: ask in any case.

    Raises:
        SourceError: if outputs differ, naming what else does.
    """
    values = dict(plain_values(built, buffers=True))
    suspects = differing(values, without_values)
    batch = task.batches("test")[0]
    found = difference(run.observed[0], call_observed(task, built, batch))
    if found > SAME:
        own = differing(values, dict(plain_values(original, buffers=True))) or suspects
    elif suspects or thorough:
        found = difference(run.observed[0], call_observed(task, stored(), batch))
        own = suspects
    if found <= SAME:
        return
    cause = (
        f"{_listed(own)} has other values each time, and is in no state dict. Register it with "
        "register_buffer and save the weights again, or compute it from what is fixed"
        if own
        else "something that it computes with is not in its state dict. Keep all that forward uses "
        "in parameters and buffers, and save the weights again"
    )
    raise SourceError(
        f"The original {task.card.name} is another model once it is built anew and its weights "
        f"are loaded (relative difference of outputs {found:.2g}), so no copy of it could be like "
        f"it: {cause}."
    )


def plain_values(module: nn.Module, buffers: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield what modules hold besides parameters and submodules: tensors, arrays and numbers.

    Args:
        module: whose.
        buffers: whether buffers count.
    """
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        held: Mapping[str, Any] = {
            **{k: v for k, v in vars(child).items() if not k.startswith("_") or "_cache" in k},
            **(child._buffers if buffers else {}),
        }
        for name, value in held.items():
            yield from _plain(f"{prefix}{name}", value, 0)


def _plain(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Parameter) or name.rpartition(".")[2] == "training":
        return
    if isinstance(value, (Tensor, int, float, complex)) or hasattr(value, "__array_interface__"):
        yield name, value
    elif depth < 3 and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _plain(f"{name}[{key!r}]", item, depth + 1)
    elif depth < 3 and isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _plain(f"{name}[{i}]", item, depth + 1)


def differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the names of values that both have and that differ; those without memory count not."""
    return [
        name
        for name, value in values.items()
        if name in others
        and not (_meta(value) or _meta(others[name]))
        and not _equal(value, others[name])
    ]


def _meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.shape == other.shape
            and one.dtype == other.dtype
            and torch.equal(_dense(one), _dense(other))
        )
    if hasattr(one, "__array_interface__"):
        import numpy as np

        return bool(np.array_equal(one, other))
    return bool(one == other) or (one != one and other != other)


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return dense.nan_to_num() if dense.is_floating_point() else dense


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if hasattr(value, "__array_interface__") else value


def _listed(names: list[str]) -> str:
    """Name a few attributes."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"the model's {', '.join(map(repr, names[:_MOST_NAMES]))}{more}"
