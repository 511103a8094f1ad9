"""Which of a checkpoint's tensors are a module's, whatever has wrapped it when it was saved.

A checkpoint is taken as one flat mapping: what lies in dicts within dicts gets dotted names, so
that a dict's key ("state_dict", "ema") and what a trainer puts before names ("model.", "net.") are
the same thing, a prefix. What torch's own wrappers put between names is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoopress.errors import nearest

if TYPE_CHECKING:
    pass

EXTRA_STATE = "_extra_state"
"""How torch calls what a module's `get_extra_state` gives."""

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""torch.compile; data parallel training and averaged models; sharding; recomputed activations."""
_MOMENTS = ("optim", "exp_avg", "momentum", "scheduler")
_DEPTH = 6


class UnclearError(ValueError):
    """Several parts of a checkpoint fit, or the one that was asked for does not."""


def flatten(data: Mapping[Any, Any], depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield what a checkpoint holds by dotted names: tensors, and what modules keep besides."""
    from torch import Tensor

    for key, value in data.items():
        name = str(key)
        if isinstance(value, Tensor) or name.rpartition(".")[2] == EXTRA_STATE:
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)) and depth:
            inside = value if isinstance(value, Mapping) else dict(enumerate(value))
            for inner, item in flatten(inside, depth - 1):
                yield f"{name}.{inner}", item


def select(
    stored: Mapping[str, Any], module_has: Collection[str], asked: str | None = None
) -> dict[str, Any]:
    """Return the part of a checkpoint that is a module's, by the module's own names.

    What has a name that the module has not goes along where it stands among those that it has, so
    that strictness finds it; what stands elsewhere, as an optimizer's state does, is left out.

    Args:
        stored: what `flatten` yields.
        module_has: the names in the module's state dict.
        asked: the key or prefix that the user chose, None if none.

    Raises:
        UnclearError: if it cannot be told which part to take.
    """
    named, wanted = _by_plain_name(stored), _by_plain_name(module_has)
    if len(named) < len(stored) or len(wanted) < len(module_has):
        # A wrapper's name is one of the model's own here: nothing may be left out.
        named, wanted = {name: name for name in stored}, {name: name for name in module_has}
    if asked is not None:
        named = _below(named, asked)
    if not _fitting(named, wanted):  # of what a wrapper of the user's own has around the model
        inner = _without_first(wanted)
        wanted = inner if _fitting(named, inner) else wanted
    prefix = _prefix(named, wanted, stored)
    around = _common_start([named[prefix + own] for own in wanted if prefix + own in named])
    found = {}
    for plain, name in named.items():
        own = plain.removeprefix(prefix)
        if plain.startswith(prefix) and (own in wanted or _beside(name, around, wanted)):
            found[wanted.get(own, own)] = stored[name]
    return found


def _below(named: Mapping[str, str], asked: str) -> dict[str, str]:
    start = "".join(f"{part}." for part in asked.split(".") if part not in _WRAPPERS)
    below = {plain: name for plain, name in named.items() if plain.startswith(start)}
    if not below:
        tops = sorted({plain.partition(".")[0] for plain in named})
        raise UnclearError(f"it has nothing below 'checkpoint_key: {asked}'.{nearest(asked, tops)}")
    return below


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return names by what they are without wrappers; fewer if two become one."""
    return {".".join(p for p in name.split(".") if p not in _WRAPPERS): name for name in names}


def _without_first(wanted: Mapping[str, str]) -> dict[str, str]:
    """Return names without the first part, if that is the same in all."""
    firsts = {name.partition(".")[0] for name in wanted}
    deep = len(firsts) == 1 and all("." in name for name in wanted)
    return {name.partition(".")[2]: own for name, own in wanted.items()} if deep else dict(wanted)


def _common_start(names: list[str]) -> tuple[str, ...]:
    """Return the wrappers and keys that stand before all of some names."""
    parts = [name.split(".")[:-1] for name in names]
    start = []
    for each in zip(*parts, strict=False):
        if len(set(each)) > 1:
            break
        start.append(each[0])
    return tuple(start)


def _beside(name: str, around: tuple[str, ...], wanted: Collection[str]) -> bool:
    """Tell whether a tensor stands among the module's, so that it should be one of them."""
    parts = tuple(name.split("."))
    wrapped = tuple(part for part in around if part in _WRAPPERS)
    if any(marker in parts[0] for marker in _MOMENTS):
        return False
    return parts[: len(wrapped)] == wrapped if around[: len(wrapped)] == wrapped else True


def _prefix(named: Mapping[str, str], wanted: Collection[str], stored: Mapping[str, Any]) -> str:
    """Return what stands before the names of the part that is the module's."""
    fitting = _fitting(named, wanted)
    trained = [each for each in fitting if not any(m in each for m in _MOMENTS)]
    fitting = trained or fitting
    if len(fitting) > 1:
        fitting = _distinct(fitting, named, wanted, stored)
    if len(fitting) > 1:
        keys = [f"'checkpoint_key: {each.rstrip('.')}'" for each in fitting if each]
        also = ", once without a prefix" if "" in fitting else ""
        raise UnclearError(
            f"it holds the model {len(fitting)} times, with different values{also}. Say in the "
            f"card which to take: {' or '.join(keys)}."
        )
    return fitting[0] if fitting else ""


def _fitting(named: Mapping[str, str], wanted: Collection[str]) -> list[str]:
    """Return the prefixes below which most of the wanted names are, if any are."""
    counts: dict[str, int] = {}
    for name in named:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:depth])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most]


def _distinct(
    prefixes: Iterable[str],
    named: Mapping[str, str],
    wanted: Collection[str],
    stored: Mapping[str, Any],
) -> list[str]:
    """Leave out prefixes whose tensors are those of an earlier one."""
    from torch import Tensor, equal

    def same(one: Any, other: Any) -> bool:
        tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
        alike = tensors and one.shape == other.shape and one.dtype == other.dtype
        return alike and equal(one, other) if tensors else bool(one == other)

    kept: list[str] = []
    for prefix in prefixes:
        values = {n: stored[named[prefix + n]] for n in wanted if prefix + n in named}
        if not any(
            all(
                other + n in named and same(value, stored[named[other + n]])
                for n, value in values.items()
            )
            for other in kept
        ):
            kept.append(prefix)
    return kept
