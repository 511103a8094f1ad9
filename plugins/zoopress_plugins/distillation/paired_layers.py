"""Which layers of a student learn from which of a teacher's."""

from __future__ import annotations

from torch import nn

from zoopress.models.edits import Keep, submodule
from zoopress.models.model import Model
from zoopress.models.stacks import Stack, find_stacks, is_stack, outermost


def paired_layers(student: Model, teacher: nn.Module, same: bool) -> list[tuple[str, str]]:
    """Pair the layers of a student's stacks with those of a teacher's.

    A layer's hidden state should be what the next layer is used to. So where layers were removed,
    each is paired with the teacher's layer before the one that the student's next layer was; the
    last with the last. Where that is not known, they are spread evenly in this way.

    Args:
        student: what is trained.
        teacher: what it learns from.
        same: whether the teacher is what the student was made from, at once or in stages.

    Returns:
        Paths of the student's layer and the teacher's; empty if either has no stack.
    """
    pairs: list[tuple[str, str]] = []
    taught = _longest(teacher)
    for stack in taught:
        path, size = stack.path, len(stack.blocks)
        count = _layers(student.module, path)
        if not count and len(taught) == 1:
            for own in _longest(student.module)[:1]:
                path, count = own.path, len(own.blocks)
        fewer = min(count, size)
        ends = [
            (part * count // fewer - 1, part * size // fewer - 1) for part in range(1, fewer + 1)
        ]
        origin = _origin(student, path, size) if same else []
        if origin and len(origin) == count:
            ends = list(enumerate(following - 1 for following in [*origin[1:], size]))
        start = f"{path}." if path else ""
        pairs += [(f"{start}{one}", stack.block_path(other)) for one, other in ends]
    return pairs


def _longest(module: nn.Module) -> list[Stack]:
    stacks = outermost(find_stacks(module))
    most = max((len(stack.blocks) for stack in stacks), default=0)
    return [stack for stack in stacks if len(stack.blocks) == most]


def _layers(module: nn.Module, path: str) -> int:
    """Return how many layers a module has under a path, 0 if there is no list of any."""
    try:
        found = submodule(module, path)
    except ValueError:
        return 0
    return len(found._modules) if is_stack(found) else 0


def _origin(student: Model, path: str, size: int) -> list[int]:
    """Return which of `size` layers each layer of a student was."""
    kept = [e.indices for e in student.edits if isinstance(e, Keep) and e.module == path]
    # A teacher that went through earlier stages had lost by then what the first edits removed.
    sizes = [len(indices) for indices in kept]
    origin = list(range(size))
    for indices in kept[sizes.index(size) + 1 if size in sizes else 0 :]:
        origin = [origin[index] for index in indices]
    return origin
