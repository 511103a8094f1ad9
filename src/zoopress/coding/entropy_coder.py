"""What codes planes of integers in a `.zpz` file: the contract of built-in coders and plugins.

A coder is registered by name. A file that uses one which is not of the format itself carries that
name and its distribution's, so whoever lacks it is told what to install.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from zoopress.coding.planes import Plane, Statistics, follows_trellis
from zoopress.coding.varint import Buffer
from zoopress.errors import PluginError

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


CODER_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


class EntropyCoder(ABC):
    """Codes a plane of integers and gives it back.

    A coder is made without arguments and keeps no state: any number of threads use one at once.
    What it writes depends on its arguments alone, not on the machine, and whatever it wrote it must
    be able to read for as long as files exist that name it.
    """

    @abstractmethod
    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Return a stream from which `decode` makes the plane again.

        Args:
            plane: [rows, columns], int32, contiguous, never empty and never of one value alone;
                at most 2²⁰ integers. Neighbours in a row are alike, and rows are.
            statistics: of the plane.
            trellis: whether each row is a path of `zoopress.coding.trellis`, which a coder may use.
        """

    @abstractmethod
    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Fill a plane of the encoded one's shape.

        The stream may come from a stranger: whatever it holds, take memory in proportion to the
        plane and the stream alone, and end. What is written is checked to fit the tensor's type,
        to follow the trellis, and, with the whole tensor, to match its checksum.

        Args:
            stream: what `encode` returned; or anything.
            plane: [rows, columns], int32, contiguous; to be filled whole.
            trellis: whether each row is a path of the trellis.

        Raises:
            ValueError: if the stream is none of such a plane.
        """


@dataclass(frozen=True)
class NamedCoder:
    """A coder that the format itself does not have.

    Attributes:
        name: what it is registered as.
        distribution: what brings it, "" if it is not installed.
        version: of that.
        coder: codes.
    """

    name: str
    distribution: str
    version: str
    coder: EntropyCoder

    def encode(self, plane: Plane, statistics: Statistics, trellis: bool) -> bytes:
        """Return the coder's stream, once it was seen to give the plane back.

        Raises:
            PluginError: if it does not.
        """
        given = plane.view()
        given.flags.writeable = False  # the other ways to code the tensor see the same plane
        stream = self.coder.encode(given, statistics, trellis)
        if not isinstance(stream, bytes):
            raise PluginError(self._fault(f"`encode` returned {type(stream).__name__}, not bytes"))
        again = np.zeros_like(plane)
        try:
            self.coder.decode(stream, again, trellis)
        except Exception as error:  # any at all: the coder is not ours
            raise PluginError(self._fault(f"`decode` fails: {error!r}")) from error
        if not np.array_equal(again, plane):
            wrong = int((again != plane).sum())
            raise PluginError(self._fault(f"{wrong} of {plane.size} integers come back changed"))
        return stream

    def decode(self, stream: Buffer, plane: Plane, trellis: bool) -> None:
        """Fill a plane; whatever the coder raises means that the stream is none of such a plane.

        Raises:
            ValueError: if it is not.
        """
        plane.fill(0)  # what the coder leaves out must not be what lay in memory
        try:
            self.coder.decode(stream, plane, trellis)
        except Exception as error:  # a stranger's stream, and a stranger's code
            raise ValueError(f"the coder {self.name!r} cannot read a chunk: {error}") from error
        if trellis and not follows_trellis(plane):
            raise ValueError(f"the coder {self.name!r} gave what is no path of the trellis")

    def _fault(self, what: str) -> str:
        return (
            f"The entropy coder {self.name!r} of {self.distribution or 'a plugin'} does not give "
            f"back what it codes: {what}. Choose another coder, and tell its author."
        )


FindCoder = Callable[[str], NamedCoder]
"""Finds a coder by its registered name; raises PluginError if there is none."""


def finder(plugins: Plugins | None = None) -> FindCoder:
    """Return what finds registered coders.

    Args:
        plugins: what is registered; everything installed by default, once a coder is asked for.
    """

    @cache
    def find(name: str) -> NamedCoder:
        from zoopress.plugins import load_plugins

        nonlocal plugins
        plugins = plugins or load_plugins()
        kind = plugins.resolve("entropy_coders", name)
        origin = plugins.origin("entropy_coders", name)
        if not CODER_NAME.fullmatch(name):
            raise PluginError(
                f"The entropy coder {name!r} of {origin.distribution} cannot be used: a file keeps "
                "its name, which must be 1 to 64 of a-z, 0-9 and _, a letter first."
            )
        # A plugin that a test hands over is of no distribution that anyone could install.
        known = origin.distribution if DISTRIBUTION.fullmatch(origin.distribution) else ""
        return NamedCoder(name, known, origin.version, kind())

    return find
