"""Every request has a time limit, whoever of the client's functions makes it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub_server import Fault, UploadRules
from hub_server.fixtures import HubFixture
from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.errors import HubError
from zoopress.hub import client, limits
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub
from zoopress.hub.download import fetch
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.publishing.publish import PushOptions, push
from zoopress.publishing.release import open_release
from zoopress.recipes import load_recipe
from zoopress.store import Store

TOKEN = "hf_alicealicealice"
HANG_S = 20.0


@pytest.fixture(autouse=True)
def _limited(hub: HubFixture, monkeypatch: pytest.MonkeyPatch, hub_waits: list[float]) -> None:
    import huggingface_hub

    huggingface_hub.close_session()  # with the limits that it was made with
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(limits, "SILENCE_S", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.3)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add_user("alice", token=TOKEN, orgs=["zoo"])
    hub.rules = UploadRules(threshold=100)
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_zoo(folder)
    with (folder / "card.yaml").open("a") as stream:
        stream.write("license: mit\n")
    (folder / "r.yaml").write_text("stages: [{technique: weight_quantization, bits: 8}]\n")
    card = load_card(str(folder / "card.yaml"), plugins)
    recipe = load_recipe(str(folder / "r.yaml"), plugins)
    compress(card, recipe, folder / "out", Store(folder / "store"), plugins)
    return folder / "out"


def publish(run: Path, tmp_path: Path, plugins: Plugins) -> None:
    shutil.copytree(run, tmp_path / "run")
    push(Hub(), open_release(tmp_path / "run", plugins), "zoo/small", PushOptions(tag="v1"))


def timed(work: Callable[[], Any]) -> float:
    start = time.monotonic()
    with pytest.raises(HubError, match=r"cannot be reached|imeout"):
        work()
    return time.monotonic() - start


@pytest.mark.parametrize(
    "path",
    [
        "/api/repos/create",
        "/preupload/",
        "/info/lfs/objects/batch",
        "/upload/",
        "/commit/",
        "/tag/",
        "/api/models/",
    ],
)
def test_a_push_to_a_server_that_hangs_ends(
    hub: HubFixture, run: Path, tmp_path: Path, plugins: Plugins, path: str
) -> None:
    fault = Fault.delay(HANG_S, path=path, times=None)
    hub.faults.add(fault)
    assert timed(lambda: publish(run, tmp_path, plugins)) < HANG_S
    assert fault.hits


@pytest.mark.parametrize("path", ["/api/models/", "/resolve/", "/cdn/"])
def test_a_download_from_a_server_that_hangs_ends(hub: HubFixture, path: str) -> None:
    hub.create_repo("zoo/m", {"config.json": b"{}", "big.bin": bytes(5000)}, large=["big.bin"])
    hub.faults.add(Fault.delay(HANG_S, path=path, times=None))
    everything = lambda: fetch(Hub(), parse_address("zoo/m"), sorted)  # noqa: E731
    assert timed(everything) < HANG_S


def test_who_one_is_and_lists_have_limits(hub: HubFixture) -> None:
    hub.faults.add(Fault.delay(HANG_S, path="/api/", times=None))
    asked = Hub()
    assert timed(lambda: asked.call("asking", asked.api.whoami)) < HANG_S
    assert timed(lambda: asked.call("listing", lambda: list(asked.api.list_models()))) < HANG_S


def test_a_server_that_was_slow_once_is_asked_again(hub: HubFixture) -> None:
    hub.create_repo("zoo/m", {"config.json": b"{}"})
    hub.faults.add(Fault.delay(1.0, path="/api/models/", times=1))
    assert Hub().model("zoo/m").files


def test_the_clients_own_setting_is_the_limit_and_others_stay(
    hub: HubFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import get_session

    def asked(**options: Any) -> Any:
        limits.limit_requests()
        limits.limit_requests()
        return get_session().get(f"{hub.endpoint}/api/models", **options).request.extensions

    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "7")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 7)
    assert asked()["timeout"]["read"] == asked(timeout=None)["timeout"]["read"] == 7.0
    assert asked(timeout=3.0)["timeout"]["read"] == 3.0
