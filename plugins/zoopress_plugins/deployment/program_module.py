"""A module whose forward is a program that another runtime runs."""

from __future__ import annotations

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress_plugins.deployment.named_call import NamedCall, Run, emptied, module_running


def module_of(artifact: Opened, run: Run) -> nn.Module:
    """Return a module of an artifact's inputs, outputs and methods that runs a program.

    Args:
        artifact: what the program was made of.
        run: runs the program.
    """
    call = artifact.call("A program follows a call")
    form = emptied(call.repeated(1)(artifact.module))
    return module_running(artifact.module, NamedCall(artifact.module, call), form, run)
