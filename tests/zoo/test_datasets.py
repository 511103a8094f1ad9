"""Datasets from files, folders and installed packages: what is read, and what is refused."""

import csv
import gzip
import json
import logging
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from dataset_cards import make_card, write_idx
from zoopress.errors import CardError
from zoopress.plugins import load_plugins
from zoopress.tasks import Dataset, File, open_dataset
from zoopress_zoo.datasets.readers import read_csv, typed_column

IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([0, 1, 2, 1, 0], np.uint8)


def open_at(folder: Path, dataset: str) -> Dataset:
    return open_dataset(make_card(folder, "image-classification", {"dataset": dataset}))


def column(dataset: Dataset, name: str, part: str = "all") -> list[Any]:
    table = dataset.parts()[part]
    return list(table.values(name, range(len(table))))


def write_png(path: Path, size: tuple[int, int] = (4, 4), value: int = 0) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


class TestIdx:
    def test_parts_come_from_mnists_names_in_plain_or_gzip(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES)
        write_idx(tmp_path / "train-labels.idx1-ubyte", LABELS)
        for what, array in (("images-idx3", IMAGES[:2]), ("labels-idx1", LABELS[:2])):
            write_idx(tmp_path / "plain", array)
            content = gzip.compress((tmp_path / "plain").read_bytes())
            (tmp_path / f"t10k-{what}-ubyte.gz").write_bytes(content)
        dataset = open_at(tmp_path, "idx:.")
        assert {name: len(table) for name, table in dataset.parts().items()} == {
            "train": 5,
            "t10k": 2,
        }
        assert column(dataset, "label", "train") == [0, 1, 2, 1, 0]
        assert np.array_equal(column(dataset, "image", "t10k"), IMAGES[:2, ..., None])

    def test_one_pair_without_a_part_is_all_there_is(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "images-idx3-ubyte", IMAGES)
        write_idx(tmp_path / "labels-idx1-ubyte", LABELS)
        assert list(open_at(tmp_path, "idx:.").parts()) == ["all"]

    @pytest.mark.parametrize(
        ("name", "damage", "said"),
        [
            ("images", lambda data: data[:-1], "cut off"),
            ("images", lambda data: data + b"x", "too long"),
            ("images", lambda data: b"PNG!" + data[4:], "no IDX file"),
            ("images", lambda data: b"", "no IDX file"),
            ("images", lambda data: data[:9], "ends within its header"),
            ("images", lambda data: b"\0\0\x0d\x03" + data[4:], "magic number 0x00000d03"),
            ("labels", lambda data: b"\0\0\x08\x03" + data[4:], "expected 0x00000801"),
            # Two thousand million images: refused before memory for them is asked for.
            ("images", lambda data: data[:4] + struct.pack(">I", 2**31) + data[8:], "cut off"),
            ("labels", lambda data: data[:4] + struct.pack(">I", 4) + data[8:-1], "5 images"),
        ],
    )
    def test_damaged_files_are_named(
        self, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], said: str
    ) -> None:
        write_idx(tmp_path / "images-idx3-ubyte", IMAGES)
        write_idx(tmp_path / "labels-idx1-ubyte", LABELS)
        path = next(tmp_path.glob(f"{name}*"))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(CardError) as raised:
            open_at(tmp_path, "idx:.").parts()
        assert said in str(raised.value)
        assert path.name in str(raised.value)

    def test_a_small_gzip_file_cannot_claim_any_size(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "labels-idx1-ubyte", LABELS)
        header = struct.pack(">HBB3I", 0, 8, 3, 2**20, 2**10, 2**10)
        (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(header))
        with pytest.raises(CardError, match="do not fit into it"):
            open_at(tmp_path, "idx:.").parts()

    def test_images_without_labels_and_empty_folders_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(CardError, match="no IDX files"):
            open_at(tmp_path, "idx:.")
        write_idx(tmp_path / "train-images-idx3-ubyte", IMAGES)
        with pytest.raises(CardError, match="no labels to go with it"):
            open_at(tmp_path, "idx:.")
        with pytest.raises(CardError, match="there is nothing at"):
            open_at(tmp_path, "idx:elsewhere")


class TestFolder:
    def test_classes_are_folders_below_the_parts(self, tmp_path: Path) -> None:
        for part, names in (("train", ["cat/1", "dog/a/2"]), ("val", ["dog/1"])):
            for name in names:
                write_png(tmp_path / part / f"{name}.png")
        dataset = open_at(tmp_path, "folder:.")
        assert column(dataset, "label", "train") == ["cat", "dog"]
        assert column(dataset, "label", "val") == ["dog"]
        assert dataset.label_names("label") == ("cat", "dog")
        image = column(dataset, "image", "val")[0]
        assert isinstance(image, File)
        assert image.content == (tmp_path / "val/dog/1.png").read_bytes()

    def test_links_that_lead_out_and_other_files_are_left_out_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_png(tmp_path / "outside/secret.png")
        write_png(tmp_path / "data/cat/1.png")
        (tmp_path / "data/cat/notes.txt").write_text("no image")
        (tmp_path / "data/cat/link.png").symlink_to(tmp_path / "outside/secret.png")
        (tmp_path / "data/cat/more").symlink_to(tmp_path / "outside")
        with caplog.at_level(logging.WARNING, "zoopress.tasks"):
            assert len(open_at(tmp_path, "folder:data").parts()["all"]) == 1
        assert "2 files are left out" in caplog.text
        assert "notes.txt" in caplog.text

    def test_a_folder_without_images_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        with pytest.raises(CardError, match="has no images"):
            open_at(tmp_path, "folder:.")


class TestFile:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "npz"])
    def test_each_form_gives_the_same_columns(self, tmp_path: Path, suffix: str) -> None:
        rows = [{"a": 1, "b": 0.5}, {"a": 2, "b": -1e3}, {"a": -3, "b": 7.25}]
        path = tmp_path / f"data.{suffix}"
        if suffix in ("csv", "tsv"):
            with path.open("w", newline="") as stream:
                writer = csv.writer(stream, delimiter="," if suffix == "csv" else "\t")
                writer.writerows([["a", "b"], *([row["a"], row["b"]] for row in rows)])
        elif suffix == "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows))
        elif suffix == "json":
            path.write_text(json.dumps(rows))
        elif suffix == "parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            np.savez(path, a=[row["a"] for row in rows], b=[row["b"] for row in rows])
        dataset = open_at(tmp_path, f"file:{path.name}")
        assert list(dataset.parts()["all"].columns) == ["a", "b"]
        assert column(dataset, "a") == [1, 2, -3]
        assert column(dataset, "b") == [0.5, -1000.0, 7.25]
        assert list(dataset.parts()["all"].values("a", [2, 0])) == [-3, 1]

    def test_files_of_a_folder_are_its_parts(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("x,y\n1,2\n3,4\n")
        (tmp_path / "test.jsonl").write_text('{"x": 5, "y": 6}\n')
        (tmp_path / "readme.txt").write_text("left out")
        dataset = open_at(tmp_path, "file:.")
        assert column(dataset, "y", "train") == [2, 4]
        assert column(dataset, "y", "test") == [6]
        (tmp_path / "test.csv").write_text("x,y\n1,2\n")
        with pytest.raises(CardError, match=r"test\.csv and test\.jsonl are both there"):
            open_at(tmp_path, "file:.")

    @pytest.mark.parametrize(
        "names", ["x_train y_train x_test y_test", "train_x train_y test_x test_y"]
    )
    def test_arrays_of_one_npz_may_be_its_parts(self, tmp_path: Path, names: str) -> None:
        arrays = [np.zeros((3, 2)), np.arange(3), np.ones((2, 2)), np.arange(2)]
        np.savez(tmp_path / "data.npz", **dict(zip(names.split(), arrays, strict=True)))
        dataset = open_at(tmp_path, "file:data.npz")
        assert {part: list(table.columns) for part, table in dataset.parts().items()} == {
            "train": ["x", "y"],
            "test": ["x", "y"],
        }
        assert column(dataset, "y", "test") == [0, 1]

    def test_nothing_is_ever_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path(tmp_path / "exploded").touch, ())

        np.savez(tmp_path / "data.npz", a=np.array([Bomb(), Bomb()], object))
        with pytest.raises(CardError, match="opening it could run code") as raised:
            open_at(tmp_path, "file:data.npz").parts()
        assert "allow_pickle" not in str(raised.value)
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.csv", "x,y\n1,2\n3\n", "line 3 has 1 values, and the first line names 2 columns"),
            ("a.csv", "x,x\n1,2\n", "several columns are called 'x'"),
            ("a.csv", 'x,y\n"1,2\n', "line"),
            ("a.jsonl", '{"x": 1}\n{"x": \n', "line 2"),
            ("a.jsonl", "[1]\n", "row 1 is list"),
            ("a.json", '{"x": [1], "y": [1, 2]}', "different lengths"),
            ("a.json", '"text"', "a list of objects"),
            ("a.json", "[" * 100_000, "nested too deeply"),
            ("a.parquet", "PAR1", "cannot be read"),
            ("a.npz", "PK", "cannot be read"),
            ("a.txt", b"\xff\xfe\x00", "cannot be read"),
            ("a.xlsx", "x", "files must end in one of .csv"),
        ],
    )
    def test_what_cannot_be_read_is_told(
        self, tmp_path: Path, name: str, content: str | bytes, said: str
    ) -> None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(CardError) as raised:
            open_at(tmp_path, f"file:{name}").parts()
        assert said in str(raised.value)

    @given(st.lists(st.integers(-(10**17), 10**17), min_size=1))
    def test_integers_stay_integers(self, numbers: list[int]) -> None:
        assert typed_column([str(number) for number in numbers]) == numbers

    @given(st.lists(st.floats(allow_nan=False), min_size=1))
    def test_floats_are_read_exactly(self, numbers: list[float]) -> None:
        assert typed_column([repr(number) for number in numbers]) == numbers

    @pytest.mark.parametrize("text", ["007", "1_000", "0x10", "1,5", "one"])
    def test_what_is_no_plain_number_stays_text(self, text: str) -> None:
        assert typed_column(["1", text]) == ["1", text]

    def test_missing_numbers_are_nan(self) -> None:
        found = typed_column(["1", "", "2.5"])
        assert found[::2] == [1.0, 2.5]
        assert math.isnan(found[1])

    @given(
        st.lists(
            st.tuples(st.text("ab,\"'\n\t é", max_size=8), st.text("xy;\n", max_size=5)),
            min_size=1,
        )
    )
    def test_any_text_comes_back_as_it_was_written(self, rows: list[tuple[str, str]]) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.csv"
            with path.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("a", "b"), *rows])
            table = read_csv(path)["all"]
            every = range(len(table))
            found = zip(table.values("a", every), table.values("b", every), strict=True)
            assert list(found) == rows


class TestPackage:
    def test_digits_are_images_with_names(self, tmp_path: Path) -> None:
        dataset = open_at(tmp_path, "package:sklearn.datasets/digits")
        assert len(dataset.parts()["all"]) == 1797
        assert column(dataset, "image")[0].shape == (8, 8, 1)
        assert max(image.max() for image in column(dataset, "image")) == 16
        assert dataset.label_names("label") == list("0123456789")

    @pytest.mark.parametrize(
        ("name", "rows", "label"),
        [
            ("iris", 150, "label"),
            ("wine", 178, "label"),
            ("breast_cancer", 569, "label"),
            ("diabetes", 442, "target"),
            ("linnerud", 20, "Waist"),
        ],
    )
    def test_tables_have_a_column_a_feature(
        self, tmp_path: Path, name: str, rows: int, label: str
    ) -> None:
        table = open_at(tmp_path, f"package:sklearn.datasets/{name}").parts()["all"]
        assert len(table) == rows
        assert label in table.columns
        assert all(len(table.values(column, [0])) == 1 for column in table.columns)

    @pytest.mark.parametrize(
        ("dataset", "said"),
        [
            ("package:sklearn.datasets/digit", "Did you mean 'digits'"),
            ("package:os/path", "only 'sklearn.datasets' is known"),
        ],
    )
    def test_others_are_refused(self, tmp_path: Path, dataset: str, said: str) -> None:
        with pytest.raises(CardError, match=said):
            open_at(tmp_path, dataset)


class TestFingerprint:
    def test_it_follows_the_content_and_not_the_place(self, tmp_path: Path) -> None:
        prints = []
        for name, value in (("a", 0), ("b", 0), ("c", 9)):
            write_png(tmp_path / name / "cat/1.png", value=value)
            prints.append(open_at(tmp_path, f"folder:{name}").fingerprint())
        assert prints[0] == prints[1] != prints[2]

    def test_it_imports_nothing_heavy(self, tmp_path: Path) -> None:
        write_png(tmp_path / "images/cat/1.png")
        (tmp_path / "data.csv").write_text("image,label\n1,2\n")
        write_idx(tmp_path / "images-idx3-ubyte", IMAGES)
        write_idx(tmp_path / "labels-idx1-ubyte", LABELS)
        code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import types
sys.modules["numpy"] = sys.modules["torch"] = None  # importing them fails
from zoopress.cards import Card
from zoopress.plugins import load_plugins
from pathlib import Path
for dataset in ("folder:images", "file:data.csv", "idx:.", "package:sklearn.datasets/digits"):
    for task in ("image-classification", "regression", "audio-classification", "forecasting"):
        card = Card.model_validate(dict(name="card", source="path:w", task=task, data=dict(
            dataset=dataset, preprocessing=dict(window=2) if task == "forecasting" else dict())))
        card._root = Path({str(tmp_path)!r})
        load_plugins().resolve("tasks", task)(card, card._root).fingerprint()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scheme", sorted(load_plugins().references["datasets"]))
def test_every_scheme_is_documented(scheme: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "datasets.md"
    assert f"| `{scheme}:" in page.read_text(encoding="utf-8")
