"""Datasets of the Hub, by the real library against a server on loopback."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset_cards import SMALL, make_card, open_task
from hub_server.fixtures import HubFixture
from zoopress.errors import CardError, HubError, ZoopressError
from zoopress.tasks import File, open_dataset

pytest.importorskip("datasets")


def png(value: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def parquet(rows: int, start: int = 0) -> bytes:
    """Return a part as the Hub's datasets come: images with class labels, and sentences."""
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    each = range(start, start + rows)
    stream = io.BytesIO()
    datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": png(i), "path": None} for i in each],
            "label": [i % 2 for i in each],
            "text": [f"sentence {i}" for i in each],
        },
        features=features,
    ).to_parquet(stream)
    return stream.getvalue()


@pytest.fixture
def published(hub: HubFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubFixture:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    hub.create_repo(
        "datasets/alice/pets",
        {
            "data/train-00000-of-00001.parquet": parquet(20),
            "data/test-00000-of-00001.parquet": parquet(6, 20),
        },
    )
    return hub


def open_pets(folder: Path, dataset: str = "hub:alice/pets") -> Any:
    return open_dataset(make_card(folder, "image-classification", {"dataset": dataset}))


def test_parts_columns_and_class_names_are_those_of_the_repository(
    published: HubFixture, tmp_path: Path
) -> None:
    dataset = open_pets(tmp_path)
    parts = dataset.parts()
    assert {name: len(table) for name, table in parts.items()} == {"train": 20, "test": 6}
    assert parts["train"].columns == ("picture", "label", "text")
    assert dataset.label_names("label") == ["cat", "dog"]
    assert parts["test"].values("text", [2, 0]) == ["sentence 22", "sentence 20"]
    (image,) = parts["test"].values("picture", [1])
    assert isinstance(image, File)
    assert image.content == png(21)


def test_a_task_runs_on_it(published: HubFixture, tmp_path: Path) -> None:
    task = open_task(
        tmp_path,
        "image-classification",
        dataset="hub:alice/pets",
        columns={"image": "picture"},
        **SMALL,
    )
    batch = task.samples("test").batch(range(4))
    assert tuple(batch.inputs.shape) == (4, 3, 4, 4)
    assert task.label_names() == ("cat", "dog")
    values = (batch.inputs[:, 0, 0, 0] * 255).round().int().tolist()
    assert batch.targets.tolist() == [value % 2 for value in values]


def test_the_fingerprint_is_the_commit(published: HubFixture, tmp_path: Path) -> None:
    first = published.head("datasets/alice/pets")
    assert open_pets(tmp_path).fingerprint() == f"alice/pets@{first}#"
    second = published.commit(
        "datasets/alice/pets", {"data/test-00000-of-00001.parquet": parquet(8, 30)}
    )
    assert open_pets(tmp_path).fingerprint() == f"alice/pets@{second}#"
    assert len(open_pets(tmp_path).parts()["test"]) == 8
    pinned = open_pets(tmp_path, f"hub:alice/pets@{first}")
    published.requests.clear()
    assert pinned.fingerprint() == f"alice/pets@{first}#"
    assert published.requests == []
    assert len(pinned.parts()["test"]) == 6


def test_a_config_chooses_among_several(published: HubFixture, tmp_path: Path) -> None:
    readme = """---
configs:
- config_name: small
  data_files: [{split: train, path: small.csv}]
- config_name: large
  data_files: [{split: train, path: large.csv}]
---
"""
    files = {"README.md": readme.encode(), "small.csv": b"a\n1\n", "large.csv": b"a\n1\n2\n"}
    published.create_repo("datasets/alice/sizes", files)
    assert len(open_pets(tmp_path, "hub:alice/sizes#large").parts()["train"]) == 2
    with pytest.raises(CardError, match="small") as raised:
        open_pets(tmp_path, "hub:alice/sizes#smal").parts()
    print("MSG", raised.value)


def test_code_of_a_dataset_is_never_run(published: HubFixture, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    published.create_repo("datasets/alice/script", {"script.py": code.encode()})
    with pytest.raises(ZoopressError, match="alice/script") as raised:
        open_pets(tmp_path, "hub:alice/script").parts()
    print("MSG", raised.value)
    assert not (tmp_path / "ran").exists()


def test_a_private_dataset_needs_the_users_token(
    published: HubFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.add_user("alice", token="hf_alice_secret")
    published.create_repo("datasets/alice/secret", {"train.csv": b"a\n1\n"}, private=True)
    with pytest.raises(HubError, match=r"there is no dataset 'alice/secret'.*or it is private"):
        open_pets(tmp_path, "hub:alice/secret").fingerprint()
    monkeypatch.setenv("HF_TOKEN", "hf_alice_secret")
    assert len(open_pets(tmp_path, "hub:alice/secret").parts()["train"]) == 1


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("hub:alice/pets/data@main", "without a file or folder"),
        ("hub:a/b/../c", "is no address"),
    ],
)
def test_malformed_addresses_are_told(tmp_path: Path, dataset: str, said: str) -> None:
    with pytest.raises(CardError, match=said):
        open_pets(tmp_path, dataset)


def test_a_branch_without_a_network_asks_for_the_commit(
    published: HubFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="hub:alice/pets@COMMIT"):
        open_pets(tmp_path).fingerprint()


@pytest.mark.slow
def test_a_commit_that_was_loaded_once_needs_no_network(
    published: HubFixture, tmp_path: Path
) -> None:
    commit = published.head("datasets/alice/pets")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from dataset_cards import make_card
from zoopress.tasks import open_dataset
data = {{"dataset": "hub:alice/pets@{commit}"}}
dataset = open_dataset(make_card(Path("."), "image-classification", data))
print(len(dataset.parts()["train"]), dataset.fingerprint())
"""
    environment = {
        **published.environment(),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for offline in ("0", "1"):
        published.requests.clear()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"20 alice/pets@{commit}#\n"
        assert bool(published.requests) == (offline == "0")
