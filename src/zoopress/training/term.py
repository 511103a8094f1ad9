"""What a technique adds to the loss of the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from zoopress.tasks import Batch


class Term(nn.Module, ABC):
    """An extra term of the loss; its parameters, such as a learned adapter's, are trained too.

    They are checkpointed with the model. A module that must not be trained, such as a teacher, is
    held where torch does not find it (in a tuple), and put into evaluation mode by who makes it.

    Args:
        name: what reports call it.
        weight: what it is multiplied by.
    """

    def __init__(self, name: str, weight: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.weight = weight

    @abstractmethod
    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the term for one batch, a scalar with gradients.

        Args:
            batch: what the module was just run on, on the device it is trained on.
            output: what came out.
        """

    def watching(self, module: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which training takes place, for instance with hooks on `module`.

        The module is in it as it will be trained, on its device. The term's own parameters follow
        there once the context is entered, which may make them.
        """
        return nullcontext()
