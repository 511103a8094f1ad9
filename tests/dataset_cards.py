"""Tasks on small datasets, opened as a card's are."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from zoopress.cards import Card
from zoopress.plugins import load_plugins
from zoopress.tasks import Task

SMALL = {"evaluation_samples": 4, "calibration_samples": 3}


def make_card(folder: Path, task: str, data: dict[str, Any]) -> Card:
    """Return a card as a file in a folder would be read."""
    fields = {"name": "card", "source": "path:weights.safetensors", "task": task, "data": data}
    card = Card.model_validate(fields)
    card._root = folder
    return card


def open_task(folder: Path, task: str, **data: Any) -> Any:
    """Return a task; the model's files are in the same folder."""
    made: Task = load_plugins().resolve("tasks", task)(make_card(folder, task, data), folder)
    return made


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an IDX file of unsigned bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
