"""`package:sklearn.datasets/NAME`: the datasets that scikit-learn ships, without a network.

digits has the columns "image" ([8, 8, 1], values 0 to 16) and "label"; the others have one column a
feature, and "label" (classes) or "target" (a number).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zoopress.cards import Card
from zoopress.errors import CardError, nearest
from zoopress.optional import import_optional
from zoopress.tasks import Dataset, Table
from zoopress_zoo.datasets.tables import Columns, unreadable

SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")


def package(card: Card) -> Dataset:
    """Find `package:sklearn.datasets/NAME`.

    Raises:
        CardError: if it is none that scikit-learn ships, or that is not installed.
    """
    assert card.data is not None, "a dataset is opened of a card with data"
    location = (card.data.dataset or "").partition(":")[2]
    module, _, name = location.partition("/")
    if module != "sklearn.datasets":
        raise unreadable(
            card,
            "of packages, only 'sklearn.datasets' is known, for example "
            "'package:sklearn.datasets/digits'.",
        )
    if name not in SHIPPED:
        raise unreadable(card, f"scikit-learn ships no dataset {name!r}.{nearest(name, SHIPPED)}")
    try:
        installed = version("scikit-learn")
    except PackageNotFoundError as error:
        raise unreadable(
            card, "scikit-learn is not installed; run: pip install 'zoopress[data]'"
        ) from error
    return _Shipped(name, installed)


class _Shipped(Dataset):
    def __init__(self, name: str, installed: str) -> None:
        self._name, self._installed = name, installed

    def fingerprint(self) -> str:
        return f"scikit-learn {self._installed} {self._name}"

    def parts(self) -> Mapping[str, Table]:
        return {"all": self._table}

    def label_names(self, column: str) -> Sequence[str]:
        names = self._bunch.get("target_names", ())
        return [str(name) for name in names] if column == "label" else ()

    @cached_property
    def _table(self) -> Table:
        data, target = self._bunch["data"], self._bunch["target"]
        if self._name == "digits":
            images = self._bunch["images"].astype("uint8")[..., None]
            return Columns({"image": images, "label": target})
        features = self._bunch["feature_names"]
        found: dict[str, Any] = {str(name): data[:, i] for i, name in enumerate(features)}
        if self._name == "linnerud":  # three targets
            names = self._bunch["target_names"]
            return Columns(found | {str(name): target[:, i] for i, name in enumerate(names)})
        return Columns(found | {"target" if self._name == "diabetes" else "label": target})

    @cached_property
    def _bunch(self) -> Any:
        datasets = import_optional(
            "sklearn.datasets",
            f"the dataset package:sklearn/{self._name} needs scikit-learn",
            "pip install 'zoopress[data]'",
            CardError,
        )
        return getattr(datasets, f"load_{self._name}")()
