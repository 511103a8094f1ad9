"""A module's call as named tensors, and its outputs as a row of them: what other runtimes know."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.artifacts.opened import Call
from zoopress.errors import DeploymentError
from zoopress.models.outputs import output_tensors
from zoopress.runtimes.runtime import keep_no_cache, refuse_cache
from zoopress.tasks.batches import map_tensors

Run = Callable[[dict[str, Tensor]], Sequence[Tensor]]
"""Runs a model on its inputs by name."""


class NamedCall:
    """How a module is called: tensors by the names of its arguments, and all else fixed.

    Args:
        module: whose call it is.
        call: an example.

    Attributes:
        tensors: of the example, by name.

    Raises:
        DeploymentError: if the call has no tensors.
    """

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._signature = inspect.signature(module.forward)
        self._form, self.tensors = self._named(call.arguments, call.named)
        if not self.tensors:
            raise DeploymentError("The example inputs have no tensor. Give what the model takes.")

    @property
    def names(self) -> list[str]:
        """Return the names of its tensors."""
        return list(self.tensors)

    def of(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return another call's tensors by the same names.

        Raises:
            DeploymentError: if the call is of another form than the example.
        """
        form, tensors = self._named(arguments, named)
        if form != self._form:
            raise DeploymentError(
                f"The model was prepared for {_shown(self._form)}, and called with "
                f"{_shown(form)}. Load it with example_inputs of the form that you call it with, "
                "or without any: then the first call is the example."
            )
        return tensors

    def call(self, tensors: Mapping[str, Tensor]) -> Call:
        """Return the call that named tensors make."""

        def put(value: Any) -> Any:
            if isinstance(value, _Place):
                return tensors[value.name]
            if isinstance(value, dict):
                return {key: put(item) for key, item in value.items()}
            if isinstance(value, (tuple, list)):
                return type(value)(put(item) for item in value)
            return value

        bound = inspect.BoundArguments(self._signature, put(self._form))
        return Call(bound.args, bound.kwargs)

    def _named(
        self, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        bound = self._signature.bind(*arguments, **named)
        refuse_cache(arguments, named)
        parameters = self._signature.parameters
        # Given as it is by default, or left out: the same call.
        given = {
            name: value
            for name, value in bound.arguments.items()
            if not (value is None and parameters[name].default is None)
        }
        found: dict[str, Tensor] = {}

        def place(name: str, tensor: Tensor) -> _Place:
            first, _, rest = name.partition(".")
            if parameters[first].kind is inspect.Parameter.VAR_KEYWORD:
                name = rest
            found[name] = tensor
            return _Place(name)

        return map_tensors(given, place), found


class _Place:
    """Stands for a tensor in a call."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and other.name == self.name

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "tensor"


def _shown(form: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}"[:80] for name, value in form.items())


class Flat(nn.Module):
    """A module that takes tensors in a row, and gives those of its outputs in a row."""

    def __init__(self, module: nn.Module, call: NamedCall) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module."""
        call = self._call.call(dict(zip(self._call.names, tensors, strict=True)))
        outputs = self.module(*call.arguments, **call.named)
        return tuple(tensor for _, tensor in output_tensors(outputs))


def output_names(output: Any) -> list[str]:
    """Return the names of a module's output tensors, as dicts have them; "output" if it is one."""
    names = [name.removeprefix("output.") for name, _ in output_tensors(output)]
    return [f"output_{name}" if name[0].isdigit() else name for name in names]


def emptied(output: Any) -> Any:
    """Return a module's output without its numbers, for `filled`."""
    return _rebuilt(output, lambda tensor: torch.empty(0))


def filled(form: Any, tensors: Sequence[Tensor]) -> Any:
    """Return an output of the form that `emptied` gave, with other tensors in it.

    What is neither a tensor nor plain data, such as a cache of keys and values, is None.
    """
    each = iter(tensors)
    return _rebuilt(form, lambda _: next(each))


def _rebuilt(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        items = {key: _rebuilt(value, change) for key, value in output.items()}
        # transformers' outputs are dataclasses besides.
        return items if type(output) is dict else type(output)(**items)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_rebuilt(value, change) for value in output))
    if isinstance(output, (tuple, list)):
        return type(output)(_rebuilt(value, change) for value in output)
    return output if output is None or isinstance(output, (bool, int, float, str)) else None


def module_running(module: nn.Module, call: NamedCall, form: Any, run: Run) -> nn.Module:
    """Return a module of the attributes and methods of another, whose forward is run elsewhere.

    Args:
        module: the other one; it is not changed, and its weights are not kept.
        call: how it is called.
        form: of its outputs, as `emptied` gives it.
        run: runs the model.
    """
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    shell = copy.deepcopy(module, {key: _without_memory(t) for key, t in tensors.items()})
    for part in shell.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):  # they ran into the program
            setattr(part, hooks, type(getattr(part, hooks))())
    keep_no_cache(shell)
    # What asks the model for its device and type looks at its first parameter.
    shell._parameters = {"placeholder": nn.Parameter(torch.empty(0), False), **shell._parameters}
    shell.forward = _Forward(module, call, form, run)
    return shell.eval()


def _without_memory(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty


class _Forward:
    """A forward method that runs elsewhere."""

    def __init__(self, module: nn.Module, call: NamedCall, form: Any, run: Run) -> None:
        self.__signature__ = inspect.signature(module.forward)
        self._call, self._form, self._run = call, form, run

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        given = self._call.of(arguments, named)
        return filled(self._form, self._run({k: t.detach().cpu() for k, t in given.items()}))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        return self  # the model behind it never changes

    def __reduce__(self) -> Any:
        raise DeploymentError(
            "A model in another runtime cannot be pickled. Load it where it is to run."
        )
