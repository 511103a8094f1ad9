"""Cards of models on the Hub. Their settings are fetched, never their weights or code."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from zoopress.cards import Card
from zoopress.cards.maker import CardMaker, Draft, Listing, Wish, card_name
from zoopress.errors import HubError, SourceError
from zoopress.hub.address import Address, parse_address
from zoopress.hub.client import Hub, RemoteModel
from zoopress.hub.download import fetch
from zoopress.sources import SourceFiles
from zoopress_zoo.card_draft import Found, explain, make_draft
from zoopress_zoo.card_from_folder import read_shapes
from zoopress_zoo.compressed import manifest_name, remote_files
from zoopress_zoo.selection import Selection, select

_LARGEST_SETTINGS = 1 << 20
_MOST_HEADERS = 64


class HubCards(CardMaker):
    """Makes cards of `hub:org/name`, `hub:org/name@revision`, `hub:org/name/FILE_OR_FOLDER`."""

    def draft(self, place: str, wish: Wish) -> Draft:
        """Return a card of a repository, pinned to the commit that its revision is now.

        Raises:
            HubError: if it cannot be had.
            SourceError: if it cannot become a card.
        """
        address, hub = parse_address(place), Hub()
        model = hub.model(address.repo_id, address.revision)
        at = Address(model.repo_id, address.inside, model.commit)
        if manifest_name(model.files, address.inside) is not None:
            files = self._compressed(hub, at, ["config"])
            return make_draft(self._found(model, address, files), wish, self.plugins)
        try:
            selected = select(model.files, address.inside)
        except SourceError as error:

            def read(name: str) -> bytes:
                got = fetch(hub, at, lambda names: [name], whole=False)
                return (got.folder / name).read_bytes()

            raise SourceError(_specific(explain(error, model.files, read), model.repo_id)) from (
                error
            )
        small = [
            name
            for name in selected.others
            if name.endswith(".json")
            and model.files[_whole(selected, name)].size <= _LARGEST_SETTINGS
        ]
        chosen = [_whole(selected, name) for name in small]
        snapshot = fetch(hub, at, lambda names: chosen, whole=False)
        folder = snapshot.folder / selected.folder
        files = SourceFiles(folder, model.commit, selected.weights, selected.others)
        return make_draft(self._found(model, address, files), wish, self.plugins)

    def _found(self, model: RemoteModel, address: Address, files: SourceFiles) -> Found:
        inside = f"/{address.inside.strip('/')}" if address.inside.strip("/") else ""
        name = model.repo_id.rpartition("/")[2] + inside.replace("/", "-")
        return Found(
            name=card_name(name.removesuffix(PurePosixPath(inside).suffix if inside else "")),
            source=f"hub:{model.repo_id}{inside}@{model.commit}",
            origin=f"{model.repo_id}{inside}",
            files=files,
            metadata=_metadata(model),
            base_model=model.repo_id,
            owner=model.repo_id.partition("/")[0] if "/" in model.repo_id else "",
            notes=_notes(model, address),
            pinned_from=None if address.pinned else address.revision or "main",
        )

    def _compressed(self, hub: Hub, address: Address, wanted: Collection[str]) -> SourceFiles:
        """Return the files of a compressed model, those that are wanted fetched."""
        snapshot = fetch(
            hub,
            address,
            lambda names: filter(None, [manifest_name(names, address.inside)]),
            whole=False,
        )

        def is_wanted(files: SourceFiles, name: str) -> bool:
            if name in files.weights:
                return False
            return "others" in wanted or ("config" in wanted and name.endswith(".json"))

        return remote_files(hub, address, snapshot, is_wanted)

    def listing(self, card: Card, wanted: Collection[str] = ()) -> Listing:
        """Return a card's files, fetching those of settings if that is asked for.

        Raises:
            HubError: if they cannot be had.
            SourceError: if the repository holds no model that can be told.
        """
        address, hub = parse_address(card.location), Hub()
        selected = Selection((), ())

        manifest: str | None = None

        def choose(names: Collection[str]) -> list[str]:
            nonlocal selected, manifest
            manifest = manifest_name(names, address.inside)
            if manifest is not None:
                return [manifest]
            selected = select(names, address.inside)
            return [
                _whole(selected, name)
                for name in selected.others
                if "others" in wanted or ("config" in wanted and name.endswith(".json"))
            ]

        snapshot = fetch(hub, address, choose, whole=False)
        if manifest is not None:
            at = Address(address.repo_id, address.inside, snapshot.commit)
            files = self._compressed(hub, at, wanted)
            selected = Selection(files.weights, files.others, address.inside.strip("/"))
        folder = snapshot.folder / selected.folder
        files = SourceFiles(folder, snapshot.commit, selected.weights, selected.others)
        present = frozenset(name for name in files.all if (folder / name).is_file())
        sizes = {name: (folder / name).stat().st_size for name in present}
        if len(present) < len(files.all) and not hub.offline:
            remote = hub.model(address.repo_id, snapshot.commit).files
            sizes |= {name: remote[_whole(selected, name)].size for name in files.all}
        return Listing(files, sizes, present, f"{hub.api.endpoint}/{address.repo_id}")

    def commit(self, card: Card, revision: str | None = None) -> str | None:
        """Ask for the commit of a revision; None while HF_HUB_OFFLINE forbids to ask."""
        address, hub = parse_address(card.location), Hub()
        if hub.offline:
            return None
        return hub.model(address.repo_id, revision or address.revision).commit

    def shapes(self, card: Card, listing: Listing) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes in the headers of safetensors files; of those on the Hub, no more."""
        names = [n for n in listing.files.weights if not n.endswith(".index.json")]
        if len(names) > _MOST_HEADERS or not all(n.endswith(".safetensors") for n in names):
            return None
        hub, address = Hub(), parse_address(card.location)
        inside = _folder_of(address, listing)
        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            if name in listing.present:
                shapes |= read_shapes(listing.files.folder / name)
            elif hub.offline:
                return None
            else:
                shapes |= _remote_shapes(hub, address.repo_id, f"{inside}{name}", listing)
        return shapes


def _remote_shapes(
    hub: Hub, repo_id: str, name: str, listing: Listing
) -> dict[str, tuple[int, ...]]:
    commit = listing.files.revision
    try:
        header = hub.call(
            f"reading the header of {name} of {repo_id}",
            lambda: hub.api.parse_safetensors_file_metadata(repo_id, name, revision=commit),
            repo_id,
            commit,
        )
    except HubError as error:
        if "SafetensorsParsingError" in str(error):
            raise SourceError(
                f"{name} is no safetensors file: its header cannot be read. Ask its owner, or take "
                "another revision."
            ) from error
        raise
    return {key: tuple(tensor.shape) for key, tensor in header.tensors.items()}


def _folder_of(address: Address, listing: Listing) -> str:
    """Return the folder of the repository that names of files start from."""
    inside = address.inside.strip("/")
    if inside and PurePosixPath(inside).name in listing.files.weights:
        inside = inside.rpartition("/")[0]
    return f"{inside}/" if inside else ""


def _whole(selected: Selection, name: str) -> str:
    return f"{selected.folder}/{name}" if selected.folder else name


def _metadata(model: RemoteModel) -> Mapping[str, Any]:
    """Return the README's metadata, with what the Hub has inferred where they say nothing."""
    metadata = dict(model.card)
    for key, value in (("pipeline_tag", model.pipeline_tag), ("library_name", model.library_name)):
        if value and not isinstance(metadata.get(key), str):
            metadata[key] = value
    stated = [tag.removeprefix("license:") for tag in model.tags if tag.startswith("license:")]
    if not metadata.get("license") and stated:
        metadata["license"] = stated
    return metadata


def _notes(model: RemoteModel, address: Address) -> dict[str, str]:
    said = []
    if model.gated:
        said.append("It is gated: whoever uses this card needs access, and a token (HF_TOKEN).")
    if model.private:
        said.append("It is private: whoever uses this card needs a token that may read it.")
    if model.repo_id != address.repo_id:
        said.append(f"It has been renamed; it was {address.repo_id}.")
    return {"source": "\n".join(said)} if said else {}


def _specific(text: str, repo_id: str) -> str:
    """Put a repository in the place of an example's."""
    for example in ("hub:org/name/", "ORG/NAME/"):
        text = text.replace(example, f"{repo_id}/")
    text = text.replace("Name one in the card's source, for", "Name one, for")
    return re.sub(r" or 'path:[^']*'", "", text)
