"""Watching a model imports no compiler; where there is one, it does not see what is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoopress.models.dispatch import flop_counter_mode, without_compiler

ALONE = """
import sys
import torch
from torch import nn
from zoopress.dependencies.groups import find_dependencies
from zoopress.models.dispatch import flop_counter_mode
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
assert find_dependencies(model, lambda: model(torch.ones(1, 4))).groups
with flop_counter_mode(display=False) as counter:
    model(torch.ones(1, 4))
assert counter.get_total_flops() == 2 * (4 * 6 + 6 * 2)
assert "torch._dynamo" not in sys.modules
"""


def test_looking_at_a_forward_pass_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@without_compiler
class Caller(TorchDispatchMode):
    """Notes which file's code calls it: the compiler's own is what hides it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.files: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.files.add(sys._getframe(1).f_code.co_filename)
        return func(*args, **(kwargs or {}))


def test_where_the_compiler_is_what_a_mode_does_is_hidden_from_it() -> None:
    import torch._dynamo

    with Caller() as caller:
        torch.ones(1) + 1
    (file,) = caller.files
    assert Path(file).parent == Path(torch._dynamo.__file__).parent


def test_wrapping_a_class_twice_changes_nothing() -> None:
    counters = [flop_counter_mode(display=False) for _ in range(2)]
    flops = []
    for counter in counters:
        with counter:
            nn.Linear(4, 4)(torch.ones(1, 4))
        flops.append(counter.get_total_flops())
    assert flops == [32, 32]
    before = Caller.__torch_dispatch__
    assert without_compiler(Caller).__torch_dispatch__ is before
