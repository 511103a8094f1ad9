"""Axes that a model splits in two and may merge again, as a shuffle of channels does.

A view of channels as [groups, channels of each], turned and merged, only deals them out anew: they
stay removable, the same ones of each group. Whatever else is done to an axis in two parts, such as
attention's heads, needs both sizes.
"""

from __future__ import annotations

from torch import Tensor

from zoopress.dependencies.call import SPLIT, Call, varying

_MOVING = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t"),
        *("unsqueeze", "squeeze", "clone", "contiguous", "alias", "detach", "_to_copy"),
    )
)
_Key = tuple[int, int, int]


class Splits:
    """The axes that lie in two parts at this point of a trace, by the nodes that index them."""

    def __init__(self) -> None:
        self._parts: dict[_Key, Tensor] = {}

    def holds(self, ids: Tensor) -> bool:
        """Return whether ids are those of an axis in two parts."""
        return bool(self._parts) and len(varying(ids)) > 1 and _key(ids) in self._parts

    def add(self, call: Call, ids: Tensor, result: Tensor) -> None:
        """Note that a call splits an axis; into more than two it is fixed."""
        if len(varying(ids)) == 1 and len(varying(result)) == 2 and call.name in _MOVING:
            sizes = [result.shape[axis] for axis in varying(result)]
            self._parts[_key(result)] = result.reshape(sizes)
        else:
            call.fix(ids, SPLIT)

    def moved(self, call: Call, ids: Tensor, result: Tensor) -> None:
        """Note what becomes of an axis in two parts; merged, each part loses the same indices."""
        if len(varying(result)) == 1:
            rows = self._parts[_key(ids)]
            call.join(rows[:1], rows)
        elif len(varying(result)) > 2:
            call.fix(ids, SPLIT)

    def meet(self, call: Call) -> None:
        """Fix axes in two parts that a call does more with than to move them."""
        if not self._parts or call.name in _MOVING:
            return
        for tensor in call.inputs:
            for ids in call.ids(tensor).all:
                if self.holds(ids):
                    call.fix(ids, SPLIT)


def _key(ids: Tensor) -> _Key:
    return int(ids.min()), int(ids.max()), ids.numel()
