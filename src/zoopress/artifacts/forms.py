"""The forms of stored tensors as a manifest names them; `encoding.py` says what each means.

Apart from that module, so that a manifest is read without torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Alias(_Entry):
    """Equal to another tensor; `tied` if it is the very same one."""

    form: Literal["alias"] = "alias"
    of: str
    tied: bool = False


class Boolean(_Entry):
    """Bools, one bit each, row-major, least significant bit first."""

    form: Literal["boolean"] = "boolean"


class Masked(_Entry):
    """A pruned weight: a mask, and what it keeps; `narrow` as of `Narrow`."""

    form: Literal["masked"] = "masked"
    narrow: bool = False


class Narrow(_Entry):
    """Floats that 16 bits hold exactly, stored in 16 bits and loaded in the architecture's type."""

    form: Literal["narrow"] = "narrow"


class Computed(_Entry):
    """Not stored: a buffer that the architecture's code makes when it is built."""

    form: Literal["computed"] = "computed"


class Zeros(_Entry):
    """Codes of a pruned weight, stored as they are; the mask is where they are not zero's code."""

    form: Literal["zeros"] = "zeros"


class CodesEntry(_Entry):
    """Codes that the packed weight itself packs, stored as integers.

    `zeros`: of a pruned weight, whose mask is where they are not zero's code.
    """

    form: Literal["codes"] = "codes"
    zeros: bool = False


Stored = Boolean | Masked | Narrow | Zeros | CodesEntry
AnyEntry = Alias | Computed | Stored
TensorEntry = Annotated[AnyEntry, Field(discriminator="form")]
