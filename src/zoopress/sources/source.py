"""What a model source hands over: files on disk, and how to build a module from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zoopress.errors import PluginError, SourceError, ZoopressError
from zoopress.interface import shown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoopress.artifacts.again import Origin
    from zoopress.artifacts.manifest import Manifest
    from zoopress.cards import Card
    from zoopress.models.edits import Edit
    from zoopress.models.model import Model
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class SourceFiles:
    """A model's files.

    Attributes:
        folder: where they are.
        revision: which version of them, as exactly as the source can tell.
        weights: names of the files that hold its tensors.
        others: names of the files besides that a user of the model needs.
    """

    folder: Path
    revision: str
    weights: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.weights, *self.others)

    def size_bytes(self) -> int:
        """Return the bytes of all files together."""
        return sum((self.folder / name).stat().st_size for name in self.all)


@dataclass(frozen=True)
class Companions:
    """What an artifact holds besides its tensors.

    Attributes:
        files: by name, what to copy or to write.
        edits: what loading has to replay: those that the files do not express already.
        native: whether the library that the model comes from can load it by itself, given all
            tensors as they are.
        arguments: of the architecture, if others than before go with these files.
        listing: makes a file that lists all others, from their names, where a library needs one.
    """

    files: Mapping[str, Path | bytes]
    edits: Sequence[Edit]
    native: bool = False
    arguments: dict[str, Any] | None = None
    listing: Callable[[Sequence[str]], Mapping[str, bytes]] | None = None


class Architecture(ABC):
    """How to build the module that a model's tensors belong to.

    An artifact records `name` and `arguments`; both are data and may come from a stranger, so a
    subclass must never import or call what they name unless it is known to be safe.

    Class attributes:
        builds_on_meta: whether `build` may be called with the meta device as default. Code that
            keeps tensors anywhere but in the module, as a cached function does, may not: it would
            give those without values to all who call it later.
    """

    name: ClassVar[str]
    builds_on_meta: ClassVar[bool] = True

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        self.folder = folder
        self.arguments = arguments
        # What `load` found in the files, where it can tell.
        self.came_as: Mapping[str, torch.dtype] = {}
        """Types that tensors of the module have there, if others than in the module."""
        self.unused_bytes = 0
        """Of tensors there that are none of the module's, such as an optimizer's state."""

    @classmethod
    @abstractmethod
    def detect(cls, card: Card, files: SourceFiles) -> Architecture | None:
        """Return the architecture if this class can build what a card's files hold."""

    def code(self) -> str:
        """Return a digest of the user's code that builds the module, if it is any."""
        return ""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the module without its weights.

        Called with the meta device as default, unless `builds_on_meta` is False.
        """

    @abstractmethod
    def load(self, files: SourceFiles) -> nn.Module:
        """Return the module with its original weights.

        Raises:
            SourceError: if the weights do not fit.
        """

    def companions(self, model: Model, others: Mapping[str, Path]) -> Companions:
        """Return the files that a compressed model needs besides its tensors.

        Args:
            model: the compressed model.
            others: the files that came with what it was made from.
        """
        return Companions(others, model.edits)

    def library_opens(self, manifest: Manifest) -> bool:
        """Tell whether the model's own library opens a compressed one, with zoopress installed."""
        return bool(manifest.native)

    def stored_name(self, name: str) -> str:
        """Return the name that a tensor of the module has in the files of its library."""
        return name

    def use_factory(self, factory: Callable[..., nn.Module]) -> None:
        """Take the function that builds the module, from the user, never from an artifact."""
        raise SourceError(
            f"This model's architecture is {self.name!r} and needs no factory; leave it out."
        )

    def use_card(self, card: Card) -> None:
        """Take from the user's card what an artifact that is the card's source does not tell.

        Raises:
            SourceError: if the card says what does not fit, or lacks what is needed.
        """
        is_compressed = f"Card {card.name!r}: {card.source!r} is a compressed model"
        if card.factory:
            raise SourceError(
                f"{is_compressed} of the architecture {self.name!r}, which needs no 'factory'; "
                "leave it out."
            )
        known = self.arguments.get("class")
        if card.model_class not in (None, known):
            raise SourceError(
                f"{is_compressed} of the class {known!r}, and 'model_class' says "
                f"{card.model_class!r}; leave it out."
            )

    def finish(self, module: nn.Module) -> nn.Module:
        """Return the module as users get it, with its tokenizer and the like attached."""
        return module

    def core(self, module: nn.Module) -> nn.Module:
        """Return the part of a module that the library runs by other runtimes, as from ONNX."""
        return module

    def keep_savable(self, module: nn.Module, origin: Origin) -> bool:
        """Let the library's own way of saving a module write a compressed one, or refuse.

        Args:
            module: what `finish` returned.
            origin: the artifact that it was opened from.

        Returns:
            Whether the library has such a way.
        """
        return False


def pull(card: Card, plugins: Plugins) -> SourceFiles:
    """Make a card's files available on disk.

    Raises:
        SourceError: if they cannot be had, or the source names files that are not there.
        PluginError: if the source returns something else.
    """
    files: SourceFiles = plugins.ask("sources", card.scheme, card)
    folder = Path(files.folder)
    missing = [name for name in files.all if not (folder / name).is_file()]
    if missing or not files.weights:
        lacks = f"no file {missing[0]!r}" if missing else "no weights"
        raise SourceError(
            f"The source {card.scheme!r} found {lacks} in {folder} for {card.source!r}. Check the "
            "card's 'source'; if that is right, the plugin of the source is not."
        )
    return files


def detect_architecture(card: Card, files: SourceFiles, plugins: Plugins) -> Architecture:
    """Return how to build the card's module.

    Raises:
        SourceError: if no registered architecture knows.
    """
    for name in plugins.references["architectures"]:
        found: Architecture | None = plugins.resolve("architectures", name).detect(card, files)
        if isinstance(found, Architecture):
            return found
        if found is not None:
            raise PluginError(
                f"The architecture {name!r}: detect() must return an instance of "
                f"zoopress.sources.Architecture, or None; it returned {shown(found)}. Repair the "
                "plugin that registers it, or leave it out with ZOOPRESS_BLOCK_PLUGINS."
            )
    raise SourceError(
        f"Card {card.name!r}: nothing here can tell the architecture of {card.source!r}. A "
        "transformers folder has a config.json; for a state dict, give the card a 'factory'. "
        f"Known architectures: {', '.join(plugins.references['architectures'])}."
    )


def build_on_meta(
    architecture: Architecture,
    most_parts: int = 1_000_000,
    buffers: bool = False,
    without_values: bool = True,
) -> nn.Module:
    """Return the module in evaluation mode, its tensors without memory wherever it allows that.

    Args:
        architecture: what to build; its sizes need not be trusted.
        most_parts: modules, parameters and buffers that it may have, all together.
        buffers: whether buffers are to have values, as far as its constructor gives any.
        without_values: whether to leave memory out; a constructor that looks at values may make
            other tensors without.

    Raises:
        SourceError: if it cannot be built.
    """
    import torch

    from zoopress.models.bounds import bounded_build
    from zoopress.models.plain import check_plain

    try:
        module = None
        with torch.random.fork_rng(devices=[]):  # weights that are drawn in vain
            if architecture.builds_on_meta and without_values and not buffers:
                module = _try_on_meta(architecture, most_parts, "all")
            if module is None and without_values:
                module = _try_on_meta(architecture, most_parts, "parameters")
            if module is None:
                with bounded_build(most_parts):
                    module = architecture.build()
        check_plain(module)
    except ZoopressError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(f"The architecture cannot be built: {reason[:400]}.") from error
    return module.eval()


def _try_on_meta(
    architecture: Architecture, most_parts: int, what: Literal["all", "parameters"]
) -> nn.Module | None:
    """Return the module without memory, None if its constructor needs values.

    Some constructors look at values, or keep tensors that no file will fill; most of those leave
    parameters alone, which are nearly all of a module's memory.
    """
    import torch

    from zoopress.models.bounds import bounded_build

    device = torch.device("meta") if what == "all" else nullcontext()
    try:
        with bounded_build(most_parts, keep_parameters=what == "all"), device:
            module = architecture.build()
    except (NotImplementedError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}".lower()
        # Or SparseMeta; the other is what `parameter.data = values` says.
        if "meta" not in said and "incompatible tensor type" not in said:
            raise
        return None
    return None if _has_stray_meta_tensor(module) else module


def _has_stray_meta_tensor(module: nn.Module) -> bool:
    """Tell whether there is a meta tensor that is neither parameter nor buffer."""
    from torch import Tensor

    from zoopress.models.plain import held_by

    known = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return any(
        isinstance(held, Tensor) and held.is_meta and id(held) not in known
        for child in module.modules()
        for _, held in held_by(child)
    )
