"""Entropy coding: the stored tensors take about as many bits as they hold information.

The tensors are written to `model.zpz` by a range coder (asymmetric numeral systems) with a table of
frequencies for each tensor: codes by their values, masks and what is left in floating point by
bytes. It is lossless and goes on to hold for whatever later stages do to the tensors.

Source: Duda 2013, arXiv:1311.2540; the format is described in docs/zpz.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.technique import Config, Effects, Outcome, Technique

if TYPE_CHECKING:
    from zoopress.model import Model
    from zoopress.technique import Context


class EntropyCodingConfig(Config):
    """Nothing to choose yet."""


class EntropyCoding(Technique[EntropyCodingConfig]):
    """Store tensors entropy coded."""

    name = "entropy_coding"
    family = "coding"
    config_type = EntropyCodingConfig

    def effects(self) -> Effects:
        """Touch no property that another stage relies on."""
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Choose the container; the tensors are coded whenever the model is saved."""
        if model.storage == "zpz":
            raise StageError("The model is entropy coded already; leave this stage out.")
        model.storage = "zpz"
        return Outcome(touched=list(model.tensors()))

    def working_bytes(self, total: int, largest: int) -> int:
        """Return nothing: the tensors are coded in small blocks when the model is saved."""
        return 0


@hookimpl
def zoopress_techniques() -> list[type[EntropyCoding]]:
    """Register the technique."""
    return [EntropyCoding]
