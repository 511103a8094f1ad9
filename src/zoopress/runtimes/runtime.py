"""A runtime: what runs a compressed model, besides PyTorch as it comes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from zoopress.artifacts.opened import Call, Opened
from zoopress.errors import DeploymentError, ZoopressError
from zoopress.models.outputs import largest_difference
from zoopress.models.packing import unpack

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


class Runtime(ABC):
    """Takes a loaded artifact and answers with a module of the same inputs and outputs.

    A runtime is made without arguments. It trusts nothing in the artifact more than loading does.

    Class attributes:
        fixes_batch: whether what it makes could be fixed to the example's number of samples. Then
            its outputs are also compared for one sample more.
        needs_example: whether it cannot do without example inputs.
        takes_packed: whether it reads weights as they are stored. Else those that PyTorch cannot
            multiply as they are have been made dense when it gets the module.
        recompiles: whether it compiles anew, in seconds, for each size and number of threads.
        libraries: distributions on whose versions its speed depends.

    Attributes:
        plugins: what is registered; there from the start on.
        chosen: which other runtime runs the model, for one that chooses.
    """

    fixes_batch: ClassVar[bool] = True
    needs_example: ClassVar[bool] = False
    takes_packed: ClassVar[bool] = False
    recompiles: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ()
    plugins: Plugins
    chosen: str | None = None

    @abstractmethod
    def refusal(self, artifact: Opened) -> str | None:
        """Say why it cannot run a model here, and what would help; None if it can.

        Args:
            artifact: the model, and how it may be called, if that is known.
        """

    @abstractmethod
    def prepare(self, artifact: Opened) -> nn.Module:
        """Return a module that takes what the artifact's module takes, and gives what it gives.

        Files that this makes belong into `zoopress.runtimes.cached`.

        Raises:
            DeploymentError: if it turns out that it cannot.
        """

    def bound(self, artifact: Opened) -> float:
        """Return how far outputs may be from the artifact's own, relative to the largest."""
        return artifact.bound(artifact.module)


@dataclass(frozen=True)
class Started:
    """A model in a runtime.

    Attributes:
        module: runs it.
        difference: the largest of its outputs from the artifact's own, relative to the largest of
            these; None if no example was there to compare on.
        bound: how large that may be.
        runtime: the runtime's name, of that which was chosen where one chooses.
    """

    module: nn.Module
    difference: float | None
    bound: float
    runtime: str


def start(name: str, artifact: Opened, plugins: Plugins) -> Started:
    """Let a registered runtime take an artifact, and compare its outputs with the artifact's own.

    Args:
        name: the runtime's registered name.
        artifact: the artifact; packed weights of its module are made dense, in place, if the
            runtime does not take them.
        plugins: what is registered.

    Raises:
        PluginError: if no plugin registers the runtime.
        DeploymentError: if it refuses the model, fails, or computes something else.
    """
    runtime: Runtime = plugins.resolve("runtimes", name)()
    runtime.plugins = plugins
    if runtime.needs_example:
        call = artifact.call(f"The runtime {name!r} follows the model through a call")
        refuse_cache(call.arguments, call.named)
    reason = runtime.refusal(artifact)
    if reason is not None:
        raise DeploymentError(f"The runtime {name!r} cannot run this model: {reason}")
    if not runtime.takes_packed:
        unpack(artifact.module, artifact.unpacking)
    calls = _calls(runtime, artifact.example)
    # Before the runtime gets hold of the module.
    expected = [call(artifact.module) for call in calls]
    bound = runtime.bound(artifact)
    try:
        module = runtime.prepare(artifact)
    except ZoopressError:
        raise
    except Exception as error:  # whatever the library behind it raises
        raise DeploymentError(_failed(name, "prepare this model", error)) from error
    if not isinstance(module, nn.Module):
        raise DeploymentError(
            f"The runtime {name!r} returned {type(module).__name__}, not a torch.nn.Module; this "
            "is a bug in it."
        )
    difference = None
    for call, outputs in zip(calls, expected, strict=True):
        try:
            got = call(module)
        except Exception as error:
            what = f"run this model on {call.samples} samples"
            raise DeploymentError(_failed(name, what, error)) from error
        difference = max(difference or 0.0, largest_difference(outputs, got))
        if not difference <= bound:
            raise DeploymentError(
                f"The runtime {name!r} computes something else than the artifact: on "
                f"{call.samples} samples the outputs differ by {difference:.2g} of the largest, "
                f"more than {bound:.2g}. Use another runtime, and tell its author."
            )
    return Started(module, difference, bound, runtime.chosen or name)


def packed_first(names: Iterable[str], plugins: Plugins) -> list[str]:
    """Return runtimes in the order in which they can take one artifact after the other.

    Those first that want weights as they are stored: for others these are made dense, in place.
    """

    def key(name: str) -> bool:
        try:
            return not plugins.resolve("runtimes", name).takes_packed
        except ZoopressError:  # it is broken, and refused when it is started
            return True

    return sorted(names, key=key)


def keep_no_cache(module: nn.Module) -> Callable[[], None]:
    """Let a language model generate without a cache of keys and values, which no program takes.

    Returns:
        A function that takes it back.
    """
    names = ("config", "generation_config")
    found: list[Any] = [getattr(module, name, None) for name in names]
    before = [(each, each.use_cache) for each in found if hasattr(each, "use_cache")]
    for settings, _ in before:
        settings.use_cache = False

    def undo() -> None:
        for settings, used in before:
            settings.use_cache = used

    return undo


def refuse_cache(arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse a cache among what a model is called with.

    Raises:
        DeploymentError: saying how to call it.
    """
    for name, value in (*enumerate(arguments), *named.items()):
        if type(value).__name__.endswith("Cache"):
            raise DeploymentError(
                f"In this runtime a model takes no cache of keys and values, which {name!r} is: "
                "call it, or its generate, with use_cache=False."
            )


def _calls(runtime: Runtime, example: Call | None) -> list[Call]:
    if example is None:
        return []
    if not runtime.fixes_batch or not example.samples:
        return [example]
    return [example, example.repeated(example.samples + 1)]


def _failed(name: str, what: str, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"The runtime {name!r} cannot {what}: {reason[:600]}. Use another runtime, such as 'eager'."
    )
