"""What redesign puts in a module's place: a block.

A block says which modules it can replace, by which registered layer, with which weights, and what
it costs. The layer itself is one like any other's (hook `zoopress_layers`), so what was replaced is
saved, coded and loaded without the block; the block is needed only where a model is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from zoopress.choice import Choice, NoOptions
from zoopress.config import Config
from zoopress.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

OptionsT = TypeVar("OptionsT", bound=Config)


@dataclass(frozen=True)
class Cost:
    """What a module takes.

    Attributes:
        parameters: numbers to store, biases included.
        macs: multiply-accumulates for each position of its output: each pixel of a convolution's,
            each row of a linear layer's.
    """

    parameters: int
    macs: float


class Block(ABC, Generic[OptionsT]):
    """Something that can take a module's place.

    Class attributes:
        name: what recipes call it, a noun in snake_case.
        config_type: the class of its options, a subclass of `Config`; `NoOptions` if it has none.
        layer: the registered name of the layer that it puts there.
        destroys: properties that nothing it replaces has any more, such as
            `float_weights("linear")` of a layer that holds no `nn.Linear`; a plan reads them.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Config]] = NoOptions
    layer: ClassVar[str]
    destroys: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: OptionsT) -> None:
        self.config = config

    @abstractmethod
    def refusal(self, module: nn.Module) -> str | None:
        """Say why it cannot replace a module, as "it has groups"; None if it can."""

    @abstractmethod
    def arguments(self, module: nn.Module) -> Mapping[str, bool | int | float | str]:
        """Return what the layer's `from_module(module, **arguments)` takes."""

    @abstractmethod
    def tensors(self, module: nn.Module) -> Mapping[str, Tensor]:
        """Return every tensor of the layer by name, computed from the module's weights alone.

        They are as close to what the module does as can be told without data; training is a
        stage's `recovery`.

        Raises:
            StageError: if they cannot be computed.
        """

    @abstractmethod
    def cost(self, module: nn.Module) -> Cost:
        """Return what the layer would take in the module's place."""

    def cost_before(self, module: nn.Module) -> Cost:
        """Return what the module itself takes; each number of a matrix is multiplied once."""
        parameters = list(module.parameters())
        matrices = (parameter.numel() for parameter in parameters if parameter.ndim > 1)
        return Cost(sum(parameter.numel() for parameter in parameters), sum(matrices))


class BlockChoice(Choice):
    """A block to put in modules' places."""

    registry: ClassVar[Registry] = "blocks"

    def make(self, plugins: Any = None) -> Block[Any]:
        """Return the block, with its options."""
        block: Block[Any] = super().make(plugins)
        return block
