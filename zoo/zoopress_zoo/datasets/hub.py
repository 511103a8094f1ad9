"""`hub:ORG/NAME@REVISION#CONFIG`: a dataset of the Hugging Face Hub, read by `datasets`.

Code of a dataset is never run. A branch or tag is resolved to the commit that it is now, which is
part of what results are stored under.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from zoopress.cards import Card
from zoopress.errors import HubError, InputError, cautious, nearest
from zoopress.hub.address import Address, parse_address
from zoopress.hub.client import Hub, without_tokens
from zoopress.optional import import_optional
from zoopress.tasks import Dataset, Table
from zoopress_zoo.datasets.tables import as_file, unreadable


def hub(card: Card) -> Dataset:
    """Find `hub:ORG/NAME`, `hub:ORG/NAME@REVISION` or one of these with `#CONFIG`.

    Raises:
        CardError: if the address is malformed.
    """
    assert card.data is not None, "a dataset is opened of a card with data"
    location = (card.data.dataset or "").partition(":")[2]
    place, _, config = location.partition("#")
    try:
        address = parse_address(re.sub(r"^(https?://[^/]+/)?datasets/", "", place))
    except InputError as error:
        raise unreadable(card, str(error)) from error
    if address.inside:
        raise unreadable(
            card,
            f"{address.inside!r}: a dataset is named as 'hub:ORG/NAME@REVISION#CONFIG', without a "
            "file or folder.",
        )
    return _HubDataset(card, address, config)


class _HubDataset(Dataset):
    def __init__(self, card: Card, address: Address, config: str) -> None:
        self._card, self._address, self._config = card, address, config

    def fingerprint(self) -> str:
        return f"{self._address.repo_id}@{self._commit}#{self._config}"

    def parts(self) -> Mapping[str, Table]:
        return self._parts

    def label_names(self, column: str) -> Sequence[str]:
        features = next(iter(self._loaded.values())).features
        feature = features.get(column)
        feature = getattr(feature, "feature", feature)  # of a list of classes, such as tags
        return list(getattr(feature, "names", None) or ())

    @cached_property
    def _commit(self) -> str:
        """The revision as a commit; only a branch or tag has to be asked for."""
        address, client = self._address, Hub()
        if address.pinned:
            return str(address.revision)
        if client.offline:
            raise HubError(
                f"HF_HUB_OFFLINE forbids requests, and which commit {address.repo_id} is at "
                f"{address.revision or 'main'} must be asked for. Name the commit: "
                f"'hub:{address.repo_id}@COMMIT'."
            )
        info = client.call(
            f"asking for the dataset {address.repo_id}",
            lambda: client.api.dataset_info(address.repo_id, revision=address.revision),
            *(f"datasets/{address.repo_id}", address.revision),
        )
        if not info.sha:
            raise HubError(f"The Hub does not say which commit of {address.repo_id} it has.")
        return info.sha

    @cached_property
    def _parts(self) -> dict[str, Table]:
        return {str(name): _HubTable(split) for name, split in self._loaded.items()}

    @cached_property
    def _loaded(self) -> Any:
        """All parts, images and sound as their bytes."""
        try:
            datasets = import_optional(
                "datasets",
                "it needs the library 'datasets'",
                "pip install 'zoopress[data]'",
                ImportError,
            )
        except ImportError as error:
            raise unreadable(self._card, str(error).rstrip(".")) from error

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        repo, client = self._address.repo_id, Hub()
        commit = self._commit

        def load() -> Any:
            try:
                return datasets.load_dataset(repo, self._config or None, revision=commit)
            except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
                # A wrong config, files of an unknown form, a dataset that needs code of its own.
                hint = ""
                if self._config and "BuilderConfig" in str(error):
                    names = datasets.get_dataset_config_names(repo, revision=commit)
                    hint = nearest(self._config, names)
                text = cautious(without_tokens(" ".join(str(error).split())))[:500]
                raise unreadable(self._card, f"{text}{hint}") from None

        loaded = client.call(f"loading the dataset {repo}", load, f"datasets/{repo}", commit)
        for name, split in loaded.items():
            for column, feature in split.features.items():
                if isinstance(feature, (datasets.Image, datasets.Audio)):
                    loaded[name] = loaded[name].cast_column(column, type(feature)(decode=False))
        return loaded


class _HubTable(Table):
    """One part, memory-mapped by `datasets`."""

    def __init__(self, split: Any) -> None:
        self._split = split

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self._split.column_names)

    def __len__(self) -> int:
        return len(self._split)

    def values(self, column: str, rows: Sequence[int]) -> Sequence[Any]:
        found = self._split.select_columns([column])[list(rows)][column]
        return [as_file(self._fetched(value)) for value in found]

    def _fetched(self, value: Any) -> Any:
        """Return an image or sound that `datasets` keeps as a file of its own, with its bytes.

        A path comes from the dataset, so that only files in the libraries' caches are opened.
        """
        if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["path"]:
            import datasets
            from huggingface_hub import constants

            path = Path(value["path"]).resolve()
            caches = (datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
            inside = any(path.is_relative_to(Path(cache).resolve()) for cache in caches)
            if value["bytes"] is None and inside:
                return {**value, "bytes": path.read_bytes()}
        return value
