"""Fetching from the Hub with the real client: pinned, verified, offline, under faults."""

from typing import Any

import pytest
from huggingface_hub import HfApi

from hub_server import Fault
from hub_server.fixtures import HubFixture
from zoopress.errors import HubError, InputError
from zoopress.hub import client
from zoopress.hub.address import looks_like_address, parse_address
from zoopress.hub.client import Hub
from zoopress.hub.download import Snapshot, fetch

FILES = {"config.json": b'{"a": 1}', "big.bin": bytes(range(256)) * 60, "sub/x.txt": b"text"}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITS_S", (0.0, 0.0, 0.0, 0.0))


def everything(address: str = "zoo/m") -> Snapshot:
    return fetch(Hub(), parse_address(address), lambda names: sorted(names))


@pytest.fixture
def repo(hub: HubFixture) -> HubFixture:
    hub.create_repo("zoo/m", FILES, large=["big.bin"])
    return hub


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: (snapshot.folder / name).read_bytes() for name in snapshot.names}


def test_only_what_was_chosen_is_fetched(repo: HubFixture) -> None:
    got = fetch(Hub(), parse_address("zoo/m"), lambda names: ["config.json"])
    assert got.names == ("config.json",)
    assert not (got.folder / "big.bin").exists()
    assert got.commit == repo.head("zoo/m")


def test_a_server_that_tells_digests_in_its_tree_alone(
    repo: HubFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HfApi.model_info

    def model_info(self: HfApi, repo_id: str, **options: Any) -> Any:
        return real(self, repo_id, **{**options, "files_metadata": False})

    monkeypatch.setattr(HfApi, "model_info", model_info)
    repo.faults.add(Fault.flip(1234, path="/cdn/", times=1))
    assert contents(everything()) == FILES


def test_a_branch_or_tag_becomes_a_commit(repo: HubFixture) -> None:
    first = repo.head("zoo/m")
    repo.tag("zoo/m", "v1")
    repo.commit("zoo/m", {"config.json": b"{}"})
    assert everything("zoo/m@v1").commit == first
    assert everything("zoo/m").commit == repo.head("zoo/m") != first
    assert contents(everything(f"zoo/m@{first}")) == FILES


def test_a_commit_in_the_cache_needs_no_request(repo: HubFixture) -> None:
    commit = everything().commit
    repo.requests.clear()
    assert contents(everything(f"zoo/m@{commit}")) == FILES
    assert repo.requests == []


def test_offline_works_from_the_cache_and_says_when_it_cannot(
    repo: HubFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(Hub(), parse_address("zoo/m"), lambda names: ["config.json"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo.requests.clear()
    got = fetch(Hub(), parse_address("zoo/m"), lambda names: ["config.json"])
    assert contents(got) == {"config.json": FILES["config.json"]}
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE.*lacks big\.bin"):
        everything()
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE.*zoo/other at main is not in the cache"):
        everything("zoo/other")
    assert repo.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(500, path="/api/models/", times=2),
        Fault.status(503, path="/resolve/", times=2),
        Fault.rate_limit(0, path="/api/models/", times=2),
        Fault.rate_limit(0, path="/cdn/", times=2),
        Fault.drop(5000, path="/cdn/", times=1),
        Fault.drop(5000, path="/cdn/", reset=True, times=1),
        Fault.truncate(5000, path="/cdn/", times=1),
        Fault.flip(1234, path="/cdn/", times=1),
        Fault.flip(1, path="/resolve/.*config", times=1),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.path}" if hasattr(fault, "kind") else str(fault)[:40],
)
def test_a_fault_that_passes_ends_in_success(repo: HubFixture, fault: Fault) -> None:
    repo.faults.add(fault)
    assert contents(everything()) == FILES


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault.status(500, path="/api/models/", times=99), "the Hub fails \\(500"),
        (Fault.flip(1234, path="/cdn/", times=99), "big.bin differ from the digests"),
        (Fault.rate_limit(9999, path="/api/models/", times=99), "limits how often"),
        (Fault.drop(5000, path="/cdn/", reset=True, times=99), "cannot be reached"),
    ],
    ids=["500", "flip", "429", "reset"],
)
def test_a_fault_that_lasts_is_a_clear_error_and_leaves_nothing_half(
    repo: HubFixture, fault: Fault, message: str
) -> None:
    repo.faults.add(fault)
    with pytest.raises(HubError, match=message):
        everything()
    repo.faults.clear()
    assert contents(everything()) == FILES


def test_a_file_changed_in_the_cache_is_noticed_and_fetched_again(repo: HubFixture) -> None:
    path = everything().folder / "big.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.resolve().write_bytes(data)
    assert contents(everything()) == FILES


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("zoo/none", "there is no model 'zoo/none'.*or it is private"),
        ("zoo/m@gone", "no branch, tag or commit 'gone'"),
        ("zoo/secret", "there is no model 'zoo/secret'.*or it is private"),
        ("zoo/gated", "is gated: its owner wants to be asked"),
    ],
)
def test_what_is_not_to_be_had_is_explained(repo: HubFixture, address: str, message: str) -> None:
    repo.create_repo("zoo/secret", FILES, private=True)
    repo.create_repo("zoo/gated", FILES, gated=True)
    with pytest.raises(HubError, match=message):
        everything(address)


def test_a_wrong_token_is_named_as_such_and_never_shown(
    repo: HubFixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SecretSecretSecret")
    repo.faults.add(Fault.status(500, path="/api/models/", times=1))
    with pytest.raises(HubError, match="does not accept the token") as caught:
        everything()
    shown = f"{caught.value} {caught.value.__context__ or ''} {caplog.text}"
    assert "SecretSecret" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None, shown


def test_a_token_opens_what_is_private(repo: HubFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.add_user("alice", token="hf_alice", orgs=["zoo"])
    repo.create_repo("zoo/secret", FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert contents(everything("zoo/secret")) == FILES


@pytest.mark.parametrize(
    ("text", "repo_id", "inside", "revision"),
    [
        ("gpt2", "gpt2", "", None),
        ("org/name", "org/name", "", None),
        ("hub:org/name@v1.0", "org/name", "", "v1.0"),
        ("org/name/model.Q4.gguf@main", "org/name", "model.Q4.gguf", "main"),
        ("org/name/a/b@refs/pr/3", "org/name", "a/b", "refs/pr/3"),
        ("https://huggingface.co/org/name", "org/name", "", None),
        ("https://huggingface.co/org/name/tree/v2", "org/name", "", "v2"),
        ("https://huggingface.co/org/name/blob/main/x/y.gguf", "org/name", "x/y.gguf", "main"),
    ],
)
def test_addresses(text: str, repo_id: str, inside: str, revision: str | None) -> None:
    address = parse_address(text)
    assert (address.repo_id, address.inside, address.revision) == (repo_id, inside, revision)


@pytest.mark.parametrize(
    "text", ["", "a b/c", "org/../x", "org//x", "org/name@", "-x/y", "o/n@../x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no"):
        parse_address(text)


def test_paths_are_no_addresses() -> None:
    assert looks_like_address("org/name")
    assert not any(looks_like_address(t) for t in ("./a/b", "/a/b", "~/a", "out/minilm/x/artifact"))
