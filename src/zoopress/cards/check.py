"""Check a card step by step, up to running its model; weights are fetched only if that is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zoopress.artifacts.card_model import find_model, manifest_of
from zoopress.cards.card import Card, find_card, load_card
from zoopress.cards.maker import (
    CardMaker,
    Listing,
    card_maker,
    clean,
    list_files,
    pinned_from,
)
from zoopress.errors import ZoopressError
from zoopress.sources import pull
from zoopress.tasks import Task, open_task

if TYPE_CHECKING:
    from torch import nn

    from zoopress.artifacts.manifest import Manifest
    from zoopress.plugins import Plugins

State = Literal["ok", "note", "failed", "skipped"]
Shapes = Mapping[str, tuple[int, ...]]
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: which.
        state: "failed" makes the card unfit; "note" does not.
        text: what was found, and what to do about it.
    """

    check: str
    state: State
    text: str


class _FailedError(Exception):
    """A check failed for a reason that it has put into words."""


@dataclass
class CardCheck:
    """Checks of one card, in order; those that need what failed are skipped."""

    name: str
    plugins: Plugins
    load: bool = False
    findings: list[Finding] = field(default_factory=list)

    def run(self) -> list[Finding]:
        """Do all checks."""
        card = self._do("card", lambda: self._read())
        if not isinstance(card, Card):
            return self.findings
        maker = card_maker(card.scheme, self.plugins)
        found = self._do("source", lambda: self._source(card, maker))
        listing = found if isinstance(found, Listing) else None
        self._revision(card, maker)
        self._do("licence", lambda: _license(card, listing))
        self._do("files", lambda: self._files(card, listing), listing)
        module = self._do("architecture", lambda: self._architecture(card, listing), listing)
        if listing is None or manifest_of(listing.files) is None:
            self._do("tensors", lambda: self._tensors(card, maker, listing, module), module)
        else:
            self._note("tensors", "skipped", "not compared: --load tells whether they fit")
        task = self._do("data", lambda: self._data(card, listing), listing)
        if self.load:
            self._do("run", lambda: self._run(card, task), task if listing else None)
        return self.findings

    def _do(self, check: str, work: Callable[[], Any], needed: Any = True) -> Any:
        """Do a check and note what it found: (state, text, what later checks need)."""
        if needed is None:
            self._note(check, "skipped", "not checked: it needs what failed before")
            return None
        try:
            state, text, made = work()
        except (ZoopressError, _FailedError) as error:
            self._note(check, "failed", str(error))
            return None
        self._note(check, state, text)
        return made

    def _note(self, check: str, state: State, text: str) -> None:
        self.findings.append(Finding(check, state, text))

    def _read(self) -> tuple[State, str, Card]:
        path, card = find_card(self.name, self.plugins), load_card(self.name, self.plugins)
        return "ok", f"{path}: {card.name}, task {card.task}", card

    def _source(self, card: Card, maker: CardMaker | None) -> tuple[State, str, Listing]:
        asked = maker.commit(card) if maker is not None else None
        listing = list_files(card, self.plugins, ["others"])
        if asked is None and card.scheme == "hub":
            return "note", "HF_HUB_OFFLINE: not asked; the cache has its settings", listing
        return "ok", f"{listing.place} at {listing.files.revision}", listing

    def _revision(self, card: Card, maker: CardMaker | None) -> None:
        """Tell whether the branch that a pinned card is from has newer commits."""
        revision = card.location.rpartition("@")[2] if "@" in card.location else ""
        branch = pinned_from(find_card(self.name, self.plugins))
        if maker is None or (card.scheme != "hub" and not branch):
            return
        if len(revision) != 40:
            text = "not pinned to a commit, so the model may change; `zoopress zoo add` pins it"
            self._note("revision", "note", text)
            return
        if branch is None:
            self._note("revision", "ok", "pinned to a commit")
            return
        try:
            newest = maker.commit(card, branch)
        except ZoopressError as error:
            self._note("revision", "note", f"whether {branch} has moved cannot be told: {error}")
            return
        if newest in (None, revision):
            text = f"pinned to {branch}'s newest commit" if newest else "pinned to a commit"
            self._note("revision", "ok", text)
            return
        place = card.location.rpartition("@")[0]
        self._note(
            "revision",
            "note",
            f"{branch} has moved on, to {newest}. To follow: zoopress zoo add {place}@{branch} "
            f"--name {card.name} --force",
        )

    def _files(self, card: Card, listing: Listing | None) -> tuple[State, str, None]:
        assert listing is not None
        total = sum(listing.sizes.values())
        if listing.absent:
            rest = sum(listing.sizes.get(name, 0) for name in listing.absent)
            text = f"{len(listing.files.all)} files, {megabytes(total)}; of these {megabytes(rest)}"
            return "ok", f"{text} are not here yet: zoopress zoo pull {self.name}", None
        pull(card, self.plugins)  # compares digests, where the source states them
        digests = ", digests match" if card.scheme == "hub" else ""
        return "ok", f"{len(listing.files.all)} files, {megabytes(total)}, all here{digests}", None

    def _architecture(
        self, card: Card, listing: Listing | None
    ) -> tuple[State, str, nn.Module | None]:
        assert listing is not None
        if any(name.endswith(".gguf") for name in listing.absent):
            text = f"a GGUF file tells it once it is here: zoopress zoo pull {self.name}"
            return "skipped", text, None
        model = find_model(card, listing.files, self.plugins)
        kind = model.architecture.arguments.get("class")
        if model.manifest is not None:
            made = _compressed(model.manifest)
            if listing.absent:
                return "ok", f"{model.architecture.name}: {kind or 'a factory'}, {made}", None
            module = model.on_meta()
            return "ok", f"{model.architecture.name}: {type(module).__name__}, {made}", None
        module = model.on_meta()
        count = sum(parameter.numel() for parameter in module.parameters())
        kind = kind or type(module).__name__
        return "ok", f"{model.architecture.name}: {kind}, {count:,} parameters", module

    def _tensors(
        self, card: Card, maker: CardMaker | None, listing: Listing | None, module: Any
    ) -> tuple[State, str, None]:
        assert listing is not None
        shapes = maker.shapes(card, listing) if maker is not None else None
        if shapes is None:
            return "skipped", "not compared: only headers of safetensors files are cheap", None
        return (*compare_shapes(module, shapes), None)

    def _data(self, card: Card, listing: Listing | None) -> tuple[State, str, Task]:
        assert listing is not None
        task = open_task(card, listing.files.folder, self.plugins)
        try:
            batches = [len(task.batches(split)) for split in ("test", "calibration")]
        except ZoopressError:
            raise
        except Exception as error:  # the card names files and functions of any kind
            raise _FailedError(f"{_reason(error)}. Correct `data` in the card.") from error
        return "ok", f"{batches[0]} batches to evaluate on, {batches[1]} to calibrate", task

    def _run(self, card: Card, task: Any) -> tuple[State, str, None]:
        files = pull(card, self.plugins)
        model = find_model(card, files, self.plugins).load()
        try:
            output = task.call(model, task.batches("test")[0])
        except ZoopressError:
            raise
        except Exception as error:  # whatever a model makes of inputs that are not for it
            raise _FailedError(
                f"it does not run on the card's data: {_reason(error)}. Correct `data`."
            ) from error
        if not bool(output.isfinite().all()):
            raise _FailedError("its output holds NaN or infinity. Give it real data, or leave it.")
        return "ok", f"one batch gives {list(output.shape)}, all finite", None


def compare_shapes(module: nn.Module, shapes: Shapes) -> tuple[State, str]:
    """Compare a module's parameters with the tensors of files.

    Libraries rename tensors when they load them, so names match as well if one ends in the other.

    Raises:
        ZoopressError: never; what does not fit is told.
    """
    left = dict(shapes)
    unmatched: dict[str, tuple[int, ...]] = {}
    parameters = {name: tuple(p.shape) for name, p in module.named_parameters()}
    for name, shape in parameters.items():
        found = _match(name, left)
        if found is None:
            unmatched[name] = shape
        elif left.pop(found) != shape:
            raise _FailedError(
                f"{found} has shape {list(shapes[found])} in the files, and the architecture wants "
                f"{list(shape)}. config.json and weights are of different models."
            )
    if not unmatched:
        return "ok", f"{len(parameters)} tensors have the names and shapes of the architecture"
    names = ", ".join(list(unmatched)[:_MOST_SHOWN])
    if _values(unmatched) > _values(left):
        raise _FailedError(
            f"the files lack {len(unmatched)} tensors of the architecture, such as {names}. Name "
            "the class that the weights are of as `model_class`, such as AutoModel."
        )
    return "note", (
        f"{len(unmatched)} of {len(parameters)} tensors have other names in the files ({names}); "
        "--load tells whether they fit"
    )


def _match(name: str, names: Mapping[str, Any]) -> str | None:
    """Return the file's name of a parameter: the same, or with more or fewer parts in front."""
    old = name.removesuffix("weight") + "gamma" if name.endswith("LayerNorm.weight") else name
    old = old.removesuffix("bias") + "beta" if old.endswith("LayerNorm.bias") else old
    for candidate in (name, old):
        parts = candidate.split(".")
        for start in range(len(parts) - 1):
            if ".".join(parts[start:]) in names:
                return ".".join(parts[start:])
    ending = f".{name}"
    longer = [n for n in names if n.endswith(ending)]
    return longer[0] if len(longer) == 1 else None


def _values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _compressed(manifest: Manifest) -> str:
    """Say that a model is compressed, and from what."""
    stages = ", ".join(clean(str(stage.get("technique")), 60) for stage in manifest.lineage)
    base = manifest.base.base_model or manifest.base.name
    return f"compressed from {clean(base, 100)} by {stages or 'nothing'}"


def _license(card: Card, listing: Listing | None) -> tuple[State, str, None]:
    manifest = manifest_of(listing.files) if listing is not None else None
    license = card.license or (manifest.base.license if manifest is not None else None)
    if not license or license == "unknown":
        raise _FailedError(
            "unknown; without one nobody may publish the compressed model. Find out, and add "
            "`license: IDENTIFIER` to the card."
        )
    name = f" ({card.license_name})" if card.license_name else ""
    return "ok", f"{license}{name}", None


def megabytes(size: int) -> str:
    """Return bytes for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def _reason(error: Exception) -> str:
    return clean(f"{type(error).__name__}: {error}", 400).rstrip(".")
