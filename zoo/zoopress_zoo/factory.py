"""Modules built by a Python function that the user's card names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoopress.cards import Card
from zoopress.errors import ArtifactError, CardError, SourceError
from zoopress.sources import Architecture, SourceFiles, callable_code, load_callable

if TYPE_CHECKING:
    from torch import nn


class Factory(Architecture):
    """A factory's module.

    An artifact tells the factory's name for people to read. It is never imported from there: who
    loads the artifact hands the function over.
    """

    name = "factory"
    builds_on_meta = False
    factory: Callable[..., nn.Module] | None = None
    _code: str = ""
    _checkpoint_key: str | None = None

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> Factory | None:
        """Take every card that names a factory."""
        if not card.factory:
            return None
        found = cls(files.folder, {"arguments": card.factory_arguments})
        found.use_card(card)
        return found

    def use_card(self, card: Card) -> None:
        """Take the card's factory, and its arguments where it gives any.

        Raises:
            CardError: if the card names none, or a file that is not there.
        """
        if not card.factory:
            raise CardError(
                f"Card {card.name!r}: {card.source!r} is a compressed model that is built by the "
                f"Python function {self.arguments.get('factory')!r}. An artifact is never trusted "
                "to name code: give the card a 'factory' of your own, as 'file.py:function'."
            )
        self._checkpoint_key = card.checkpoint_key
        reference, root = card.factory, card.root
        file = root / reference.rpartition(":")[0]
        if file.suffix == ".py" and not file.is_file():
            raise CardError(f"Card {card.name!r}: 'factory': there is no file {file}.")
        arguments = card.factory_arguments or self.arguments.get("arguments", {})
        self.arguments = {"factory": reference, "arguments": arguments}
        code = self._code = callable_code(reference, root)
        loaded: list[Callable[..., nn.Module]] = []

        def build(**arguments: Any) -> nn.Module:
            if not loaded:  # once: an edit amid a run must not change its model
                loaded.append(load_callable(reference, root, code))
            return loaded[0](**arguments)

        self.factory = build

    def code(self) -> str:
        """Return the digest of the factory's file and what that imports beside it."""
        return self._code

    def use_factory(self, factory: Callable[..., nn.Module]) -> None:
        """Take the function that builds the module."""
        self.factory = factory

    def build(self) -> nn.Module:
        """Call the factory."""
        from torch import nn

        from zoopress.models.plain import without_compiler_wrappers

        if self.factory is None:
            raise ArtifactError(
                f"{self.folder}: this model is built by the Python function "
                f"{self.arguments.get('factory')!r}. An artifact is never trusted to name code: "
                "pass the function yourself, as zoopress.load(folder, factory=…)."
            )
        arguments = self.arguments.get("arguments", {})
        try:
            module = self.factory(**arguments)
        except TypeError as error:
            raise SourceError(
                f"The factory {self.arguments.get('factory')!r} cannot be called with "
                f"{arguments}: {error}. Check 'factory_arguments'."
            ) from error
        if not isinstance(module, nn.Module):
            raise SourceError(
                f"The factory {self.arguments.get('factory')!r} returned "
                f"{type(module).__name__}, not a torch.nn.Module."
            )
        return without_compiler_wrappers(module)

    def load(self, files: SourceFiles) -> nn.Module:
        """Build the module and load its state dict."""
        from zoopress_zoo.state_dict import load_into, note_origin, read_state_dict

        module = self.build()
        tensors = {}
        for name in files.weights:
            if not name.endswith(".json"):
                tensors.update(read_state_dict(files.folder / name))
        origin = files.folder / files.weights[0]
        chosen = load_into(module, tensors, origin, key=self._checkpoint_key, rebuild=self.build)
        note_origin(self, module, chosen, tensors)
        return module
