"""Repositories of models, as `zoopress init` makes them, whose card follows a model on the Hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from hub_server.fixtures import HubFixture
from zoopress.plugins import Plugins
from zoopress.scaffolds.zoo import init_zoo

TOKEN = "hf_alicealicealice"
SOURCE = "zoo/net"
NETWORK = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))
"""
CARD = """\
# A card with a comment that stays.
name: net
source: hub:zoo/net@COMMIT  # pinned from main
factory: ../sources/network.py:build
data:
  random: {"0": {shape: [32]}}
  evaluation_samples: 16
  calibration_samples: 4
license: mit
"""
PARAMS = """\
matrix:
  cards: [net]
  recipes: [mild, coded]
recipes:
  mild:
    stages: [{technique: weight_quantization, bits: 8}]
  coded:
    stages: [{technique: weight_quantization, bits: 8}, {technique: entropy_coding}]
publish:
  repo: zoo/{card}-{recipe}
"""
PAGE = b"---\nlicense: mit\n---\n# Net\n"


def weights(seed: int) -> bytes:
    """Return the state of a small perceptron; every seed gives another."""
    torch.manual_seed(seed)
    return save(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10)).state_dict())


def publish_source(hub: HubFixture) -> str:
    """Put the first version of the model onto the Hub, and let alice write there."""
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.create_repo(SOURCE, {"model.safetensors": weights(0), "README.md": PAGE})
    return hub.head(SOURCE)


def make_repository(folder: Path, plugins: Plugins) -> Path:
    """Make a repository with one card and a DVC remote beside it."""
    for name in ("cards", "sources"):
        (folder / name).mkdir(parents=True)
    (folder / "cards/net.yaml").write_text(CARD)
    (folder / "sources/network.py").write_text(NETWORK)
    (folder / "params.yaml").write_text(PARAMS)
    init_zoo(folder, plugins, remote=str(folder.parent / "remote"))
    return folder


def copy_repository(made: Path, folder: Path, commit: str) -> Path:
    """Copy a repository, with a remote of its own, and pin its card to a commit."""
    shutil.copytree(made, folder, symlinks=True)
    for name, before, after in (
        (".dvc/config", str(made.parent), str(folder.parent)),
        ("cards/net.yaml", "@COMMIT", f"@{commit}"),
    ):
        path = folder / name
        path.write_text(path.read_text().replace(before, after))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Start")
    return folder


def environment(hub: HubFixture, store: Path) -> dict[str, str]:
    """Return the environment of a process that works in a repository."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in hub.environment(TOKEN).items() if not k.startswith("PREFECT_")}
    quiet = {"DVC_NO_ANALYTICS": "1", "ZOOPRESS_PROGRESS": "plain"}
    return {**kept, **quiet, "PATH": tools, "ZOOPRESS_STORE": str(store)}


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
