"""An exporter: writes a compressed model as files that other programs open."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.errors import DeploymentError, InputError, ZoopressError
from zoopress.models.outputs import largest_difference

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class Use:
    """How files are opened that were published.

    Attributes:
        title: who opens them, as the beginning of a line.
        code: that does.
        language: of the code.
    """

    title: str
    code: str
    language: str = "python"


class Exporter(ABC):
    """Writes a loaded artifact into a folder, and opens what it wrote, to compare the outputs.

    An exporter is made without arguments. The manifest stays behind, so what it writes is no
    artifact any more.

    Class attributes:
        needs_example: whether it cannot do without example inputs.
        fixes_batch: whether what it writes could be fixed to the example's number of samples. Then
            its outputs are also compared for one sample more.
        of_core: whether, to be published, it is given the part of a model that the model's own
            library runs by other runtimes: of a sentence encoder the transformer.
    """

    needs_example: ClassVar[bool] = False
    fixes_batch: ClassVar[bool] = False
    of_core: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, artifact: Opened) -> str | None:
        """Say why it cannot write a model, and what would help; None if it can.

        Args:
            artifact: the model, and how it may be called, if that is known.
        """

    @abstractmethod
    def write(self, artifact: Opened, folder: Path) -> None:
        """Write the model.

        Args:
            artifact: the model. Its packed weights say with `export_form` which integers and scales
                they are, and with `dense` what they stand for; `artifact.dense` has none.
            folder: empty.

        Raises:
            DeploymentError: if it turns out that it cannot.
        """

    @abstractmethod
    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Return a module that computes what the files say, opened as their users do.

        Args:
            artifact: what they were made of: its architecture may be built again; its weights must
                not be used.
            folder: what `write` wrote.
        """

    def notes(self, artifact: Opened) -> list[str]:
        """Say in sentences what a user should know of how a model is written."""
        return []

    def published_names(self, artifact: Opened, name: str) -> list[str]:
        """Return under which paths of a repository a file is published; none if it cannot be.

        Args:
            artifact: what it was made of.
            name: of a file that `write` wrote, in its folder.
        """
        return []

    def uses(self, artifact: Opened, place: str) -> list[Use]:
        """Say how what is published is opened, by those who have no zoopress.

        Args:
            artifact: what it was made of.
            place: the repository.
        """
        return []

    def bound(self, artifact: Opened) -> float:
        """Return how far outputs may be from the artifact's, relative to the largest of them."""
        return artifact.bound(artifact.dense)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: in the folder, sorted.
        size_bytes: of all of them.
        difference: the largest of the outputs of what was written from those of the artifact with
            its weights made dense, relative to the largest of these; None without an example.
        bound: how large that may be.
        notes: what a user should know of it.
    """

    files: list[Path]
    size_bytes: int
    difference: float | None
    bound: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**self.__dict__, "files": [str(path) for path in self.files]}


def export(name: str, artifact: Opened, folder: Path, plugins: Plugins) -> Exported:
    """Let a registered exporter write an artifact into a folder, which appears whole or not at all.

    What was written is opened and compared with the artifact on its example. The artifact's weights
    are made dense for that: low-bit kernels round inputs, and what is exported need not.

    Args:
        name: the exporter's registered name.
        artifact: the artifact.
        folder: new, or empty.
        plugins: what is registered.

    Raises:
        InputError: if there is something in the folder.
        PluginError: if no plugin registers the exporter.
        DeploymentError: if it refuses the model, fails, or writes something else.
    """
    exporter: Exporter = plugins.resolve("exporters", name)()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty. Choose another folder.")
    if exporter.needs_example:
        artifact.call(f"The exporter {name!r} follows the model through a call")
    reason = exporter.refusal(artifact)
    if reason is not None:
        raise DeploymentError(f"The exporter {name!r} cannot write this model: {reason}")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with _told(name, "write this model"):
            exporter.write(artifact, part)
        written = sorted(path for path in part.rglob("*") if path.is_file())
        if not written:
            raise DeploymentError(f"The exporter {name!r} wrote no file; this is a bug in it.")
        bound = exporter.bound(artifact)
        difference = _difference(name, exporter, artifact, part, bound)
        size = sum(path.stat().st_size for path in written)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    files = [folder / path.relative_to(part) for path in written]
    return Exported(files, size, difference, bound, tuple(exporter.notes(artifact)))


def _difference(
    name: str, exporter: Exporter, artifact: Opened, folder: Path, bound: float
) -> float | None:
    """Compare what was written with the artifact.

    Raises:
        DeploymentError: if it cannot be opened, or the outputs are too far.
    """
    with _told(name, "open again what it wrote"):
        module = exporter.read(artifact, folder)
    if artifact.example is None:
        return None
    calls = [artifact.example]
    if exporter.fixes_batch and artifact.example.samples:
        calls.append(artifact.example.repeated(artifact.example.samples + 1))
    found = 0.0
    for call in calls:
        expected = call(artifact.dense)
        with _told(name, f"run what it wrote on {call.samples} samples"):
            got = call(module)
        found = max(found, largest_difference(expected, got))
        if not found <= bound:
            raise DeploymentError(
                f"What the exporter {name!r} wrote computes something else: on {call.samples} "
                f"samples the outputs differ by {found:.2g} of the largest, more than {bound:.2g}. "
                "It was thrown away. Use another exporter, and tell its author."
            )
    return found


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Turn what an exporter, or a library behind it, raises into an error that names it."""
    try:
        yield
    except ZoopressError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DeploymentError(f"The exporter {name!r} cannot {what}: {reason[:600]}.") from error
