"""A card: one model of the zoo, where it comes from and how to try it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from zoopress.errors import CardError, InputError, nearest
from zoopress.hub.address import parse_address
from zoopress.yaml_source import read_yaml, validate

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RandomInput(_Part):
    """Random values for one input of a model, for when there is no real data at hand."""

    shape: tuple[int, ...] = Field(description="shape of one sample, without the batch axis")
    dtype: Literal["float32", "int64"] = "float32"
    low: int = Field(default=0, description="smallest integer")
    high: int = Field(default=2, description="integers stay below this")

    @model_validator(mode="after")
    def _check(self) -> RandomInput:
        if any(size < 1 for size in self.shape):
            raise ValueError("every size in a shape must be at least 1")
        if self.dtype == "int64" and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


WAYS = ("dataset", "text", "file", "inputs", "random")
"""The keys of a card's data of which it has exactly one."""


class Data(_Part):
    """Where samples come from; exactly one of the first five.

    Only a `dataset` has labels. Which samples are for what follows from the data and `split_seed`
    alone; no sample is in two splits.
    """

    dataset: str | None = Field(
        default=None,
        pattern=r"^[a-z]+:.+",
        description="labelled samples: `idx:FOLDER`, `folder:FOLDER` of images by class, "
        "`file:data.csv` (or .parquet, .jsonl, .npz), `package:sklearn.datasets/digits`, "
        "`hub:ORG/NAME@REVISION`",
    )

    text: str | None = Field(
        default=None,
        description="a text file with one sample a line, or `python-docstrings`, sentences from "
        "the running Python's standard library",
    )
    file: str | None = Field(
        default=None,
        description="a .safetensors, .npz or .npy file of inputs, samples along the first axis",
    )
    inputs: str | None = Field(
        default=None,
        description="`file.py:function` or `package.module:function` that returns inputs",
    )
    random: dict[str, RandomInput] | None = Field(
        default=None, description="random inputs by argument name"
    )
    columns: dict[str, str] = Field(
        default={}, description="the dataset's columns by role: {text: review, label: stars}"
    )
    label_names: tuple[str, ...] = Field(
        default=(), description="names of the classes in order, where the dataset does not tell"
    )
    parts: dict[Literal["training", "validation", "test"], str] = Field(
        default={}, description="what the dataset calls its own parts: {test: validation_matched}"
    )
    groups: tuple[str, ...] = Field(
        default=(), description="columns that name subgroups, which fairness compares"
    )
    preprocessing: dict[str, Any] = Field(
        default={}, description="how samples become inputs; each task has its own keys"
    )
    outputs: tuple[str, ...] = Field(
        default=(),
        description="names of the outputs that are judged, the first of which is what techniques "
        "look at, such as [logits]; by default all are, but caches of keys and values",
    )
    calibration_samples: int = Field(
        default=64, ge=1, description="inputs that techniques may look at"
    )
    training_samples: int | None = Field(
        default=None, ge=1, description="most samples to learn from; all that are left by default"
    )
    validation_samples: int | None = Field(
        default=None,
        ge=1,
        description="samples that stop training early; by default the dataset's own part, else a "
        "tenth of those that are left, at most 2,000",
    )
    evaluation_samples: int = Field(
        default=256, ge=2, description="samples of the test split, which all figures are of"
    )
    batch_size: int = Field(default=32, ge=1, description="samples a forward pass, but in training")
    split_seed: int = Field(default=0, ge=0, description="other splits of the same data")

    @model_validator(mode="after")
    def _check(self) -> Data:
        given = [name for name in WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of 'dataset', 'text', 'file', 'inputs' or 'random'"
                + (f", not {given}" if given else "")
            )
        if self.dataset is None:
            for name in ("columns", "label_names", "parts", "groups"):
                if getattr(self, name):
                    raise ValueError(f"{name!r} belongs to a 'dataset', which is not given")
        if self.random == {}:
            raise ValueError("'random' needs at least one input")
        return self


class Card(BaseModel):
    """One model of the zoo.

    Attributes:
        root: the folder that relative paths in the card start from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="its name in the zoo"
    )
    source: str = Field(
        pattern=r"^[a-z]+:.+", description="`package:NAME/FOLDER`, `path:FILE_OR_FOLDER`, …"
    )
    factory: str | None = Field(
        default=None,
        pattern=r"^[^:]+:[A-Za-z_][A-Za-z0-9_]*$",
        description="`file.py:function` or `package.module:function` that returns the module whose "
        "state dict `source` holds",
    )
    factory_arguments: dict[str, Any] = Field(default={}, description="keyword arguments for it")
    checkpoint_key: str | None = Field(
        default=None,
        min_length=1,
        description="which part of the state dict's file is the model, where several fit: a key "
        "or what its names begin with, such as ema",
    )
    model_class: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="class of transformers, such as AutoModelForSequenceClassification; by default "
        "the one that config.json names, else the one that `pipeline_tag` asks for",
    )
    task: str = Field(default="fidelity", description="registered task that runs and compares it")
    data: Data | None = Field(default=None, description="inputs to calibrate and compare on")
    base_model: str | None = Field(default=None, description="the model's repo id on the Hub")
    license: str | None = Field(
        default=None, description="identifier as the Hub spells it: apache-2.0, mit, other"
    )
    license_name: str | None = Field(default=None, description="name of a licence that is `other`")
    license_link: str | None = Field(default=None, description="where that licence can be read")
    pipeline_tag: str | None = Field(
        default=None, description="the Hub's name of what the model does: text-classification"
    )
    library_name: str | None = Field(default=None, description="library that the original is for")
    language: tuple[str, ...] = Field(default=(), description="ISO 639 codes")
    tags: tuple[str, ...] = Field(default=(), description="the Hub's tags, passed on")
    datasets: tuple[str, ...] = Field(default=(), description="the Hub's ids of its training data")
    metrics: tuple[str, ...] = Field(default=(), description="metrics that its task is judged by")
    measures: tuple[str, ...] = Field(
        default=("computation",),
        description="what reports measure besides size, fidelity, latency and the task's metrics: "
        "computation, memory, runtimes, robustness, fairness, explanations, energy",
    )
    description: str = Field(default="", description="for people")

    _root: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def root(self) -> Path:
        return self._root

    def as_dict(self) -> dict[str, Any]:
        """Return the card as a file spells it, without what is left at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def scheme(self) -> str:
        """The part of `source` before the colon."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part of `source` after the colon."""
        return self.source.partition(":")[2]

    @model_validator(mode="before")
    @classmethod
    def _name_base_model(cls, data: Any) -> Any:
        """Take the repository that a model comes from as the one that it is."""
        source = data.get("source") if isinstance(data, dict) else None
        if isinstance(source, str) and source.startswith("hub:") and not data.get("base_model"):
            try:
                return {**data, "base_model": parse_address(source).repo_id}
            except InputError as error:
                raise ValueError(f"'source': {error}") from error
        return data

    @model_validator(mode="after")
    def _check(self) -> Card:
        if self.factory_arguments and not self.factory:
            raise ValueError("'factory_arguments' needs a 'factory'")
        if self.checkpoint_key and not self.factory:
            raise ValueError("'checkpoint_key' needs a 'factory'")
        if "fairness" in self.measures and not (self.data and self.data.groups):
            raise ValueError(
                "the measure 'fairness' compares subgroups: name the dataset's columns that tell "
                "them in 'data.groups', such as 'groups: [language]'"
            )
        return self


def load_card(name_or_path: str, plugins: Plugins) -> Card:
    """Read a card from a file, or by the name of one that a plugin or the folder `cards` has.

    Raises:
        CardError: if it is missing or malformed.
    """
    path = find_card(name_or_path, plugins)
    source = read_yaml(path, CardError)
    card = validate(Card, source, CardError)
    card._root = path.resolve().parent
    for what, name, valid in (
        ("source", card.scheme, plugins.references["sources"]),
        ("task", card.task, plugins.references["tasks"]),
        *_dataset_scheme(card, plugins),
        *(("measure", name, plugins.references["measures"]) for name in card.measures),
    ):
        if name not in valid:
            place = {"dataset": ("data", "dataset"), "measure": ("measures",)}.get(what, (what,))
            where = source.where(place)
            raise CardError(f"{where}: there is no {what} {name!r}.{nearest(name, valid)}")
    return card


def _dataset_scheme(card: Card, plugins: Plugins) -> list[tuple[str, str, Mapping[str, str]]]:
    if card.data is None or card.data.dataset is None:
        return []
    return [("dataset", card.data.dataset.partition(":")[0], plugins.references["datasets"])]


def find_card(name_or_path: str, plugins: Plugins) -> Path:
    """Return a card's file: a plugin's card of that name, a file, or cards/NAME.yaml.

    Raises:
        CardError: if there is none.
    """
    if name_or_path in plugins.cards:
        return plugins.cards[name_or_path]
    local = local_cards()
    if name_or_path in local and not os.path.isfile(name_or_path):
        return local[name_or_path]
    if os.path.exists(name_or_path):  # unlike Path.exists, no error for a name that is too long
        return Path(name_or_path)
    raise CardError(
        f"There is no card {name_or_path!r}, neither a file nor a card of the zoo."
        f"{nearest(name_or_path, {*plugins.cards, *local})}"
    )


def local_cards(folder: Path = Path("cards")) -> dict[str, Path]:
    """Return the cards of a folder, NAME.yaml each, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.is_file()}
