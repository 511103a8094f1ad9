"""The source `hub:`, models on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Collection

from zoopress.cards import Card
from zoopress.errors import SourceError
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub
from zoopress.hub.download import fetch, note_whole
from zoopress.sources import SourceFiles
from zoopress_zoo.compressed import manifest_name, remote_files
from zoopress_zoo.selection import Selection, select


def hub(card: Card) -> SourceFiles:
    """Fetch `hub:org/name`, `hub:org/name@revision` or `hub:org/name/FILE_OR_FOLDER@revision`.

    Only what a user of the model needs is fetched, safetensors rather than pickles; of a
    compressed model all that its manifest lists. A branch or tag is resolved to the commit that it
    is now.

    Raises:
        HubError: if it cannot be had.
        SourceError: if the repository does not hold a model that can be told.
    """
    address = parse_address(card.location)
    selected, manifest, client = Selection((), ()), None, Hub()

    def choose(names: Collection[str]) -> list[str]:
        nonlocal selected, manifest
        manifest = manifest_name(names, address.inside)
        if manifest is not None:
            return [manifest]
        try:
            selected = select(names, address.inside)
        except SourceError as error:
            raise SourceError(f"Card {card.name!r}: {card.source}: {error}") from error
        start = f"{selected.folder}/" if selected.folder else ""
        return [start + name for name in (*selected.weights, *selected.others)]

    snapshot = fetch(client, address, choose, whole=False)
    compressed = remote_files(client, address, snapshot) if manifest is not None else None
    note_whole(client, address, snapshot.commit)
    if compressed is not None:
        return compressed
    folder = snapshot.folder / selected.folder
    return SourceFiles(folder, snapshot.commit, selected.weights, selected.others)
