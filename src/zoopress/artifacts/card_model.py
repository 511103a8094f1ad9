"""A card's model, plain or compressed already: the one place that tells which, and opens it.

What wants a card's model asks `find_model`, and then for as much as it needs: how it is built, its
module without memory, its module to run, or all that a stage starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.artifacts.architectures import check_registered, named_architecture
from zoopress.artifacts.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from zoopress.errors import ArtifactError, SourceError
from zoopress.sources import Architecture, SourceFiles, build_on_meta, detect_architecture

if TYPE_CHECKING:
    from torch import nn

    from zoopress.cards import Card
    from zoopress.models.model import Model
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class StageInput:
    """What a stage starts from.

    Attributes:
        model: with all edits, masks and packed weights.
        architecture: how to rebuild its module.
        others: files to carry along, name in the artifact to path.
        lineage: the stages that it has been through.
        weight_bytes: of the tensor files; of the plain tensors where no stage was yet.
    """

    model: Model
    architecture: Architecture
    others: Mapping[str, Path]
    lineage: list[dict[str, Any]]
    weight_bytes: int


@dataclass(frozen=True)
class CardModel:
    """A card's model.

    Attributes:
        files: of the model, or of the artifact.
        architecture: builds the module; of a compressed model as it was before any edit.
        plugins: what is registered.
        manifest: of a compressed model, None of a plain one.
    """

    files: SourceFiles
    architecture: Architecture
    plugins: Plugins = field(repr=False)
    manifest: Manifest | None = None

    def on_meta(self) -> nn.Module:
        """Return the module in evaluation mode, its tensors without memory where it allows that.

        Raises:
            ZoopressError: if it cannot be built.
        """
        if self.manifest is None:
            return build_on_meta(self.architecture)
        from zoopress.artifacts.artifact import rebuild

        return rebuild(self.architecture, self.files.folder, self.manifest, self.plugins).module

    def load(self) -> nn.Module:
        """Return the module to run, in evaluation mode, a compressed one as its users get it.

        Raises:
            ZoopressError: if its files are damaged or do not fit.
        """
        if self.manifest is None:
            from zoopress.artifacts.extra_state import extra_state
            from zoopress.models.on_disk import on_disk
            from zoopress.models.plain import check_plain

            module = self.architecture.load(self.files).eval()
            if (disk := on_disk()) is not None:
                disk.adopt(module)
            check_plain(module)
            extra_state(module)  # refused now, rather than when the first stage is saved
            return module
        from zoopress.models.packing import unpack

        module = self._load_artifact(self.manifest, masks=False).module
        unpack(module, "auto")
        return module

    def load_dense(self) -> nn.Module:
        """Return the module with every packed weight as a plain parameter.

        Raises:
            ZoopressError: if its files are damaged or do not fit.
        """
        from zoopress.models.packing import unpack

        module = self.load()
        unpack(module, "all")
        return module

    def open(self) -> StageInput:
        """Return what the first stage starts from.

        Raises:
            ZoopressError: if its files are damaged or do not fit.
        """
        from zoopress.models.model import Model

        others = {name: self.files.folder / name for name in self.files.others if name != MANIFEST}
        if self.manifest is None:
            model = Model(self.load(), self.plugins.layers)
            return StageInput(model, self.architecture, others, [], self.tensor_bytes(model))
        model = self._load_artifact(self.manifest, masks=True)
        size = self.manifest.weight_bytes()
        return StageInput(model, self.architecture, others, self.manifest.lineage, size)

    def tensor_bytes(self, model: Model) -> int:
        """Return the bytes of the tensors that the model uses, in the types that they came in.

        Buffers that no checkpoint holds are none of them.

        Args:
            model: as `load` gave its module.
        """
        from zoopress.artifacts.tensor_files import plain_bytes

        if self.manifest is not None:
            return self.manifest.weight_bytes()
        made = model.non_persistent()
        stored = {name: t for name, t in model.tensors().items() if name not in made}
        return plain_bytes(stored, self.architecture.came_as)

    def size_bytes(self) -> int:
        """Return the bytes of all files that using the model needs.

        Of a checkpoint that holds more, such as an optimizer's state, what the model uses; that is
        known once it was loaded.
        """
        return self.files.size_bytes() - self.architecture.unused_bytes

    def _load_artifact(self, manifest: Manifest, masks: bool) -> Model:
        from zoopress.artifacts.artifact import load_into

        folder = self.files.folder
        read_manifest(folder)  # compares every file with its SHA-256
        return load_into(self.architecture, folder, manifest, self.plugins, masks=masks)


def find_model(card: Card, files: SourceFiles, plugins: Plugins) -> CardModel:
    """Find out what a card's files hold and how to build it; no weights are read.

    Args:
        card: says what files alone do not tell, such as a factory.
        files: of the card; weights need not be there.
        plugins: registered architectures and layers.

    Raises:
        SourceError: if nothing registered can build it, or the card says what does not fit.
        ArtifactError: if it is a compressed model whose manifest is damaged or of another version,
            or which needs a plugin that is not installed.
    """
    manifest = manifest_of(files)
    if manifest is None:
        return CardModel(files, detect_architecture(card, files, plugins), plugins)
    try:
        check_registered(files.folder, manifest, plugins)
        architecture = named_architecture(files.folder, manifest, plugins)
    except ArtifactError as error:
        raise ArtifactError(f"Card {card.name!r}: {error}") from error
    architecture.use_card(card)
    return CardModel(files, architecture, plugins, manifest)


def manifest_of(files: SourceFiles) -> Manifest | None:
    """Return what a compressed model says of itself, None for a plain one.

    Raises:
        ArtifactError: if it is damaged or of another version.
    """
    return parse_manifest(files.folder / MANIFEST) if MANIFEST in files.others else None


def artifact_files(folder: Path, revision: str, extra: tuple[str, ...] = ()) -> SourceFiles:
    """Return the files of an artifact as those of a card's source.

    Args:
        folder: with all of its files; their sizes are compared with what the manifest says.
        revision: which version of them.
        extra: names of files besides that belong to the model, such as a licence.

    Raises:
        SourceError: if it is damaged or of another version.
    """
    try:
        manifest = read_manifest(folder, verify=False)
    except ArtifactError as error:
        raise SourceError(str(error)) from error
    return listed_files(manifest, folder, revision, extra)


def listed_files(
    manifest: Manifest, folder: Path, revision: str, extra: tuple[str, ...] = ()
) -> SourceFiles:
    """Return what a manifest lists as the files of a card's source, whether or not they are here.

    Args:
        manifest: of the artifact.
        folder: where the files are, or would be.
        revision: which version of them.
        extra: names of files besides that belong to the model, such as a licence.
    """
    beside = sorted({*manifest.files, *extra} - set(manifest.weights))
    return SourceFiles(folder, revision, tuple(manifest.weights), (MANIFEST, *beside))
