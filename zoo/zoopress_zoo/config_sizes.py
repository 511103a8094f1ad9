"""Which numbers of a config say the sizes that were cut, found by trying each alone.

A number is one that says a size if building the model with another one changes shapes, all of them
in the way that the cut changed them. Those that change nothing are never touched: a window or a
limit that happens to equal a width stays as it is. Three kinds of numbers are tried, and each only
for what those before it leave open:

- whole numbers that equal a size before;
- ratios, such as `mlp_ratio`, by which another size of the model is multiplied;
- fields left open (null), if writing the size before into them changes nothing at all, as GPT-2's
  inner size does, and as a window would not.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoopress.models.edits import Edit, Resize
from zoopress.models.stacks import POSITIONS

if TYPE_CHECKING:
    import torch
    from torch import nn

Fields = dict[str, Any]
Place = tuple[str | int, ...]
_Change = tuple[str, int]  # a tensor and one of its axes
_MOST_BUILDS = 96
_LARGEST_RATIO = 64
_OF_NO_MATTER = frozenset({"training", "name_or_path"})


@dataclass(frozen=True)
class _Setting:
    """What a field could be set to."""

    place: Place
    value: float


class Expression:
    """The search for a config that says what edits did.

    Args:
        core: the edited model.
        edits: what was done.
        config: the config before, with what removed layers changed in it.
        full: all its fields, those that it leaves to their defaults, too.
        build: builds the model of a config, on the meta device.
    """

    def __init__(
        self,
        core: nn.Module,
        edits: Sequence[Edit],
        config: Fields,
        full: Fields,
        build: Callable[[Fields], nn.Module],
    ) -> None:
        self._core, self._edits = core, edits
        self._config, self._full = config, full
        self._build = build
        self._builds = 0
        self._wanted = shapes(core)
        self.sizes: set[int] = set()
        """All sizes before and after that a config says."""

    def find(self) -> Fields | None:
        """Return a config that builds the edited model and nothing else, None if there is none."""
        before = self._try(self._config)
        if before is None:  # fewer layers make no sense to it, such as none with full attention
            return None
        self._before, old = before, shapes(before)
        changes = _changes(old, self._wanted)
        if changes is None or self._differ_by_layer(changes):
            return None
        chosen = self._chosen(old, changes)
        if chosen is None:
            return None
        found = _with(self._config, self._full, chosen)
        built = self._try(found) if chosen else before
        if built is None or shapes(built) != self._wanted:
            return None
        if not (alike(built, self._core, self._edits) and self._nothing_else(built, changes)):
            return None
        self.sizes = {size for pair in changes.values() for size in pair}
        return found

    def _differ_by_layer(self, changes: Mapping[_Change, tuple[int, int]]) -> bool:
        """Tell whether layers of one kind differ now, and no list has a number for each."""
        listed = {v for place, v in _leaves(self._full) if place and type(place[-1]) is int}
        news: dict[tuple[str, int, int], set[int]] = {}
        for (name, axis), (size, new) in changes.items():
            if size not in listed:
                news.setdefault((re.sub(r"\d+", "#", name), axis, size), set()).add(new)
        return any(len(each) > 1 for each in news.values())

    def _chosen(
        self, old: Mapping[str, torch.Size], changes: Mapping[_Change, tuple[int, int]]
    ) -> list[_Setting] | None:
        """Return settings that together change all that is wanted, None if there are none."""
        chosen: list[_Setting] = []
        left = set(changes)
        for kind in (self._equal, self._ratios, self._open):
            for setting in kind(old, changes, left):
                if not left:
                    break
                effect = self._effect(old, changes, [setting])
                if effect and effect & left:
                    chosen.append(setting)
                    left -= effect
            if left and kind == self._equal:
                together = self._together(old, changes, left)
                chosen += together
                left -= self._effect(old, changes, together) or set()
        return None if left else chosen

    def _effect(
        self,
        old: Mapping[str, torch.Size],
        changes: Mapping[_Change, tuple[int, int]],
        settings: Sequence[_Setting],
    ) -> set[_Change] | None:
        """Return what settings change, None if it is not what is wanted."""
        if not settings:
            return None
        built = self._try(_with(self._config, self._full, settings))
        made = None if built is None else _changes(old, shapes(built))
        if made is None or any(changes.get(key) != sizes for key, sizes in made.items()):
            return None
        return set(made)

    def _together(
        self,
        old: Mapping[str, torch.Size],
        changes: Mapping[_Change, tuple[int, int]],
        left: set[_Change],
    ) -> list[_Setting]:
        """Return settings that only have an effect together, as few as do."""
        settings = list(self._equal(old, changes, left))
        by_place = list({setting.place: setting for setting in settings}.values())
        effect = self._effect(old, changes, by_place)
        if not effect:
            return []
        for setting in by_place[:]:
            fewer = [each for each in by_place if each is not setting]
            if self._effect(old, changes, fewer) == effect:
                by_place = fewer
        return by_place

    def _equal(
        self,
        old: Mapping[str, torch.Size],
        changes: Mapping[_Change, tuple[int, int]],
        left: set[_Change],
    ) -> Iterator[_Setting]:
        pairs = sorted({changes[key] for key in left})
        for place, value in self._numbers():
            if type(value) is int:
                yield from (_Setting(place, new) for size, new in pairs if size == value)

    def _ratios(
        self,
        old: Mapping[str, torch.Size],
        changes: Mapping[_Change, tuple[int, int]],
        left: set[_Change],
    ) -> Iterator[_Setting]:
        pairs = sorted({changes[key] for key in left})
        widths = {size for shape in old.values() for size in shape}
        for place, value in self._numbers():
            if not 0 < value <= _LARGEST_RATIO:
                continue
            for size, new in pairs:
                width = round(size / value)
                if width in widths and math.isclose(width * value, size, rel_tol=1e-6):
                    yield _Setting(place, _ratio(new, width, type(value)))

    def _open(
        self,
        old: Mapping[str, torch.Size],
        changes: Mapping[_Change, tuple[int, int]],
        left: set[_Change],
    ) -> Iterator[_Setting]:
        pairs = sorted({changes[key] for key in left})
        for place, value in _leaves(self._full):
            if value is not None:
                continue
            for size, new in pairs:
                if not self._effect(old, changes, [_Setting(place, new)]):
                    continue
                same = self._try(_with(self._config, self._full, [_Setting(place, size)]))
                if same is not None and shapes(same) == old and self._nothing_else(same, {}):
                    yield _Setting(place, new)

    def _numbers(self) -> Iterator[tuple[Place, float]]:
        for place, value in _leaves(self._full):
            if type(value) in (int, float) and math.isfinite(value):
                yield place, value

    def _try(self, config: Fields) -> nn.Module | None:
        if self._builds >= _MOST_BUILDS:
            return None
        self._builds += 1
        try:
            return self._build(config)
        except Exception:  # a config that is no model's: another number is meant
            return None

    def _nothing_else(self, built: nn.Module, changes: Mapping[_Change, tuple[int, int]]) -> bool:
        """Tell whether no attribute differs from before, but sizes where tensors changed."""
        pairs = set(changes.values())
        owners = {name.rpartition(".")[0] for name, _ in changes}
        near = owners | {owner.rpartition(".")[0] for owner in owners}
        before = dict(self._before.named_modules(remove_duplicate=False))
        for path, module in built.named_modules(remove_duplicate=False):
            old = vars(before[path]) if path in before else {}
            for name, value in vars(module).items():
                if name in _OF_NO_MATTER or not _plain(value) or _same(old.get(name), value):
                    continue
                if path not in near or not _resized(old.get(name), value, pairs):
                    return False
        return True


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a module's parameters and buffers, by name."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    return {name: tensor.shape for name, tensor in named}


def alike(built: nn.Module, core: nn.Module, edits: Sequence[Edit]) -> bool:
    """Tell whether modules have the same attributes: those that edits change, words and flags."""
    sizes = {name for edit in edits if isinstance(edit, Resize) for name in edit.attributes}
    modules = dict(core.named_modules(remove_duplicate=False))
    return all(
        vars(modules[path]).get(name) == value
        for path, module in built.named_modules(remove_duplicate=False)
        for name, value in vars(module).items()
        if name in sizes | POSITIONS
        or (isinstance(value, (bool, str, float)) and name not in _OF_NO_MATTER)
    )


def _changes(
    old: Mapping[str, torch.Size], new: Mapping[str, torch.Size]
) -> dict[_Change, tuple[int, int]] | None:
    """Return the sizes before and after of each axis that differs, None if tensors do not match."""
    if old.keys() != new.keys() or any(len(old[name]) != len(new[name]) for name in old):
        return None
    return {
        (name, axis): sizes
        for name in old
        for axis, sizes in enumerate(zip(old[name], new[name], strict=True))
        if sizes[0] != sizes[1]
    }


def _ratio(new: int, width: int, kind: type) -> float:
    """Return a ratio whose product with a width is a size, whole if it was and can be."""
    if kind is int and new % width == 0:
        return new // width
    ratio = new / width
    while int(width * ratio) < new:  # models cut off the fraction
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _leaves(config: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield a config's values with their places."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _leaves(value, (*at, key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _leaves(value, (*at, index))
    else:
        yield at, config


def _with(config: Fields, full: Fields, settings: Sequence[_Setting]) -> Fields:
    """Return a config with fields set; what stands in a list that is left to its default, too."""
    made: Fields = json.loads(json.dumps(config))
    for setting in settings:
        node: Any = made
        source: Any = full
        for key in setting.place[:-1]:
            source = source[key]
            if isinstance(node, dict) and key not in node:
                node[key] = copy.deepcopy(source) if isinstance(source, list) else {}
            node = node[key]
        node[setting.place[-1]] = setting.value
    return made


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _same(old: Any, new: Any) -> bool:
    return bool(type(old) is type(new) and old == new)


def _resized(old: Any, new: Any, pairs: set[tuple[int, int]]) -> bool:
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)) and len(old) == len(new):
        return all(_same(a, b) or _resized(a, b, pairs) for a, b in zip(old, new, strict=True))
    return type(old) is int and type(new) is int and (old, new) in pairs
