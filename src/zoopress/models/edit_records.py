"""Structure edits as data, one class for each kind; `edits.py` applies them.

Apart from that module, so that a manifest is read without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Argument = bool | int | float | str


class _Edit(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    module: str = Field(description="path of the module, '' for the root")


class Resize(_Edit):
    """Tensors of a module became smaller."""

    edit: Literal["resize"] = "resize"
    shapes: dict[str, list[int]] = Field(description="new shape of each changed tensor")
    attributes: dict[str, int] = Field(
        default={}, description="integer attributes that follow, such as out_features"
    )


class Replace(_Edit):
    """A registered layer took the place of a module."""

    edit: Literal["replace"] = "replace"
    layer: str = Field(description="registered name of the layer")
    arguments: dict[str, Argument] = {}


class Pack(_Edit):
    """A registered packed weight took the place of a parameter."""

    edit: Literal["pack"] = "pack"
    attribute: str = Field(description="the parameter's name in its module")
    packing: str = Field(description="registered name of the packed weight")
    dtype: str | None = Field(
        default=None,
        description="the parameter's type, if the architecture may be built in another",
    )
    folded: Literal[True] | None = Field(
        default=None,
        description="set if what is packed is a matrix whose rows are all axes but the last",
    )
    arguments: dict[str, Argument] = {}


class Keep(_Edit):
    """Only some blocks of a list of modules are left, numbered anew."""

    edit: Literal["keep"] = "keep"
    indices: list[int] = Field(description="positions of the blocks that stay, rising")


class Convert(_Edit):
    """Floats are converted where they enter and leave a module, which computes in 16 bits."""

    edit: Literal["convert"] = "convert"
    outside: Literal["float32", "float64"] = Field(
        default="float32", description="type of what leaves it, which all around it computes in"
    )


class Fold(_Edit):
    """What a module computed from others, such as a weight under weight norm, became ordinary."""

    edit: Literal["fold"] = "fold"
    attributes: list[str] = Field(description="all that the module computed, sorted")


class QuantizeInput(_Edit):
    """What enters a layer is rounded to a grid, which hangs under its name as `input_grid`."""

    edit: Literal["quantize_input"] = "quantize_input"
    arguments: dict[str, Argument] = Field(
        default={}, description="what `make_input_grid` takes besides the layer"
    )


class ScaleInput(_Edit):
    """Channels that enter a layer are multiplied by factors, which hang there as `input_scale`."""

    edit: Literal["scale_input"] = "scale_input"


AnyEdit = Resize | Replace | Pack | Keep | Convert | Fold | QuantizeInput | ScaleInput
Edit = Annotated[AnyEdit, Field(discriminator="edit")]


def layers_of(edits: Iterable[AnyEdit]) -> list[str]:
    """Return the registered layers and packed weights that edits name, in order."""
    replaced_or_packed = (
        edit.layer if isinstance(edit, Replace) else edit.packing
        for edit in edits
        if isinstance(edit, (Replace, Pack))
    )
    return list(dict.fromkeys(replaced_or_packed))
