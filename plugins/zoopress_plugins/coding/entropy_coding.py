"""Entropy coding: the stored tensors take about as many bits as they hold information.

The tensors are written to `model.zpz`: integers, codes and masks with contexts of what lies beside
them, what is left in floating point by its fields. It is lossless and goes on to hold for whatever
later stages do to the tensors.

Sources: Duda 2013, arXiv:1311.2540 (asymmetric numeral systems); Marpe, Schwarz & Wiegand 2003,
doi:10.1109/TCSVT.2003.815173 (context-adaptive binary arithmetic coding); Han, Mao & Dally 2015,
arXiv:1510.00149 (Huffman codes and relative indices); the format is described in docs/zpz.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from zoopress.config import registered
from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.techniques import Context


class EntropyCodingConfig(Config):
    """By what to code."""

    coder: Annotated[str, registered("entropy_coders", besides=("auto",))] = Field(
        default="auto",
        description="`static`: tables for each context, the fastest; `adaptive`: probabilities "
        "learned on the way, the smallest for small and sparse tensors; `huffman`: whole bits, as "
        "Deep Compression has them; `auto`: for each part the better of the first two; or the name "
        "of a coder that a plugin brings",
    )


class EntropyCoding(Technique[EntropyCodingConfig]):
    """Store tensors entropy coded."""

    name = "entropy_coding"
    family = "coding"
    config_type = EntropyCodingConfig
    weight_by_weight = True

    def effects(self) -> Effects:
        """Touch no property that another stage relies on."""
        return Effects(activations="kept")

    def apply(self, model: Model, context: Context) -> Outcome:
        """Choose the container and the coder; tensors are coded whenever the model is saved."""
        coder = self.config.coder
        coded = model.storage == "zpz"
        if coded and model.coder == coder:
            raise StageError(
                f"The model is entropy coded already, by 'coder: {coder}'; leave this stage out, "
                "or choose another coder."
            )
        model.storage, model.coder = "zpz", coder
        # Another coder may well take more bytes: who chooses it wants it for what it is.
        return Outcome(touched=list(model.tensors()), shrinks=not coded)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return nothing: the tensors are coded in small blocks when the model is saved."""
        return 0


@hookimpl
def zoopress_techniques() -> list[type[EntropyCoding]]:
    """Register the technique."""
    return [EntropyCoding]
