"""Faults of the test server, and which of them the real client gets over by itself."""

import time
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hub_server import Fault, UploadRules
from hub_server.fixtures import HubFixture

ALICE = "hf_alice"
LARGE = bytes(range(256)) * 1200


@pytest.fixture
def api(hub: HubFixture) -> HfApi:
    hub.rules = UploadRules(threshold=1000)
    hub.add_user("alice", ALICE, orgs=["zoo"])
    return HfApi(token=ALICE)


@pytest.fixture
def repo(hub: HubFixture, api: HfApi) -> str:
    hub.create_repo("zoo/model", {"config.json": "{}", "weights.bin": LARGE})
    return "zoo/model"


def partial_files(hub: HubFixture) -> list[Path]:
    return [path for path in hub.cache.rglob("*") if "incomplete" in path.name]


def ranges(hub: HubFixture) -> list[str | None]:
    return [request.headers.get("range") for request in hub.asked("/cdn/", "GET")]


# Downloads


def test_a_head_is_retried_where_nothing_is_cached(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float]
) -> None:
    fault = hub.faults.add(Fault.status(503, path="resolve", method="HEAD", times=3))
    assert Path(hf_hub_download(repo, "weights.bin")).read_bytes() == LARGE
    assert (fault.hits, len(hub.asked("resolve", "HEAD"))) == (3, 4)
    assert hub_waits == [1, 2]  # none after the first: that one is for the cache to answer


def test_a_head_that_always_fails_is_answered_by_the_cache(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float]
) -> None:
    path = hf_hub_download(repo, "config.json")
    hub.faults.add(Fault.status(500, path="resolve", times=None))
    hub.requests.clear()
    assert hf_hub_download(repo, "config.json") == path
    assert len(hub.requests) == 1
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(repo, "weights.bin")
    assert len(hub.requests) == 1 + 1 + 6


@pytest.mark.parametrize("file", ["config.json", "weights.bin"])
def test_an_error_instead_of_a_body_is_not_retried(
    hub: HubFixture, api: HfApi, repo: str, file: str
) -> None:
    hub.faults.add(Fault.status(500, method="GET"))
    with pytest.raises(HfHubHTTPError) as caught:
        hf_hub_download(repo, file)
    assert caught.value.response.status_code == 500
    assert partial_files(hub) == []
    hf_hub_download(repo, file)


@pytest.mark.parametrize("ietf", [False, True])
def test_a_download_waits_as_long_as_it_is_told_to(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float], ietf: bool
) -> None:
    hub.faults.add(Fault.rate_limit(7, path="/cdn/", times=2, ietf=ietf))
    assert Path(hf_hub_download(repo, "weights.bin")).read_bytes() == LARGE
    assert hub_waits == [8, 8]


def test_information_is_asked_for_once(hub: HubFixture, api: HfApi, repo: str) -> None:
    for fault in (Fault.rate_limit(1), Fault.status(502), Fault.status(429, retry_after=1)):
        hub.faults.add(fault)
        with pytest.raises(HfHubHTTPError) as caught:
            api.model_info(repo)
        assert caught.value.response.status_code == fault.code
    assert len(hub.requests) == 3


def test_a_tree_is_asked_for_again(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float]
) -> None:
    hub.faults.add(Fault.status(500, path="/tree/", times=2))
    assert len(list(api.list_repo_tree(repo))) == 2
    assert hub_waits == [1, 2]


def test_a_clean_break_is_resumed_from_the_last_full_chunk(
    hub: HubFixture,
    api: HfApi,
    repo: str,
    hub_waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 65536)
    hub.faults.add(Fault.drop(100_000, path="/cdn/"), Fault.drop(70_000, path="/cdn/"))
    assert Path(hf_hub_download(repo, "weights.bin")).read_bytes() == LARGE
    assert ranges(hub) == [None, "bytes=65536-", "bytes=131072-"]
    assert hub_waits == [1, 1]


def test_a_break_within_the_first_chunk_starts_again(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float]
) -> None:
    fault = hub.faults.add(Fault.drop(100_000, path="/cdn/", times=None))
    with pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(repo, "weights.bin")
    assert (fault.hits, ranges(hub)) == (6, [None] * 6)
    assert partial_files(hub) == []


def test_a_reset_is_not_retried(hub: HubFixture, api: HfApi, repo: str) -> None:
    fault = hub.faults.add(Fault.drop(100_000, reset=True, path="weights|/cdn/"))
    with pytest.raises(httpx2.ReadError):
        hf_hub_download(repo, "weights.bin")
    assert fault.hits == 1
    assert partial_files(hub) == []


def test_a_flipped_byte_passes_unnoticed_until_checksums_are_compared(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    hub.faults.add(Fault.flip(1234, path="/cdn/"), Fault.flip(-1, path="config"))
    folder = Path(snapshot_download(repo))
    wrong = (folder / "weights.bin").read_bytes()
    assert [place for place in range(len(LARGE)) if wrong[place] != LARGE[place]] == [1234]
    assert (folder / "config.json").read_bytes() == b"{" + bytes([ord("}") ^ 0xFF])
    mismatches = api.verify_repo_checksums(repo).mismatches
    assert sorted(found["path"] for found in mismatches) == ["config.json", "weights.bin"]
    snapshot_download(repo, force_download=True)
    assert api.verify_repo_checksums(repo).mismatches == []


def test_a_flip_keeps_its_place_in_a_resumed_download(
    hub: HubFixture,
    api: HfApi,
    repo: str,
    hub_waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 65536)
    hub.faults.add(Fault.drop(100_000, path="/cdn/"), Fault.flip(-1, path="/cdn/"))
    wrong = Path(hf_hub_download(repo, "weights.bin")).read_bytes()
    assert [place for place in range(len(LARGE)) if wrong[place] != LARGE[place]] == [
        len(LARGE) - 1
    ]


def test_a_short_body_is_noticed_by_its_size(hub: HubFixture, api: HfApi, repo: str) -> None:
    fault = hub.faults.add(Fault.truncate(1000, path="/cdn/"))
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download(repo, "weights.bin")
    assert fault.hits == 1
    assert partial_files(hub) == []


def test_a_slow_answer_is_waited_for_the_second_time(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    fault = hub.faults.add(Fault.delay(0.5, method="HEAD", times=2))
    begin = time.monotonic()
    hf_hub_download(repo, "config.json", etag_timeout=0.1)
    assert (fault.hits, len(hub.asked("", "HEAD"))) == (2, 2)
    assert time.monotonic() - begin > 0.5


def test_a_snapshot_falls_back_to_what_is_cached(hub: HubFixture, api: HfApi, repo: str) -> None:
    fault = Fault.status(503, path="/api/", times=None)
    hub.faults.add(fault)
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(repo)
    hub.faults.clear()
    folder = snapshot_download(repo)
    hub.commit(repo, {"config.json": b"[]"})
    hub.faults.add(Fault.status(503, times=None))
    assert snapshot_download(repo) == folder


def test_a_delay_ends_with_the_test(hub: HubFixture, api: HfApi, repo: str) -> None:
    hub.faults.add(Fault.delay(60, method="POST"))
    begin = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{hub.endpoint}/api/models/{repo}/tag/main", timeout=0.1)
    hub.reset()
    assert time.monotonic() - begin < 5
    assert hub.requests == []


# Uploads


def upload(api: HfApi, repo: str, parent: str | None = None) -> str:
    operations = [CommitOperationAdd("new.bin", b"n" * 50_000), CommitOperationAdd("a", b"a")]
    info = api.create_commit(repo, operations, commit_message="Up", parent_commit=parent)
    return info.oid


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(500, path="/preupload/"),
        Fault.status(503, path="objects/batch"),
        Fault.status(500, path="/upload/", method="PUT"),
        Fault.status(504, path="objects/verify"),
        Fault.rate_limit(0, path="/upload/"),
        Fault.break_upload(20_000, path="/upload/"),
        Fault.break_upload(20_000, path="/upload/", reset=True),
        Fault.lose_answer(path="/upload/"),
        Fault.lose_answer(path="/preupload/", reset=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.path.strip('/')}",
)
def test_what_comes_before_the_commit_is_retried(
    hub: HubFixture, api: HfApi, repo: str, hub_waits: list[float], fault: Fault
) -> None:
    hub.faults.add(fault)
    assert upload(api, repo) == hub.head(repo)
    assert hub.files(repo)["new.bin"] == b"n" * 50_000
    assert (fault.hits, hub_waits) == (1, [1])


@pytest.mark.parametrize("code", [429, 500, 503])
def test_the_commit_itself_is_not_retried(
    hub: HubFixture, api: HfApi, repo: str, code: int
) -> None:
    before = hub.head(repo)
    hub.faults.add(Fault.status(code, path="/commit/", retry_after=1))
    with pytest.raises(HfHubHTTPError) as caught:
        upload(api, repo)
    assert caught.value.response.status_code == code
    assert hub.head(repo) == before
    assert upload(api, repo) == hub.head(repo)
    assert len(hub.asked("/upload/", "PUT")) == 1  # what was sent stays there


@pytest.mark.parametrize(
    ("reset", "error"), [(False, httpx2.RemoteProtocolError), (True, httpx2.ReadError)]
)
def test_a_commit_may_have_succeeded_though_its_answer_was_lost(
    hub: HubFixture, api: HfApi, repo: str, reset: bool, error: type[Exception]
) -> None:
    before = hub.head(repo)
    hub.faults.add(Fault.lose_answer(path="/commit/", reset=reset))
    with pytest.raises(error):
        upload(api, repo, parent=before)
    assert hub.commits(repo)[0].parent == before
    assert hub.asked("/commit/")[0].status is None
    # The same again finds nothing left to do, whatever parent it names.
    assert upload(api, repo, parent=before) == hub.head(repo)
    assert len(hub.commits(repo)) == 2


def test_a_proxy_error_during_the_check_of_a_card_is_no_error_of_the_hub(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    hub.faults.add(Fault.status(502, path="validate-yaml"))
    with pytest.raises(ValueError, match="Expecting value"):
        api.upload_file(path_or_fileobj=b"# C", path_in_repo="README.md", repo_id=repo)


def test_faults_strike_in_order_and_only_where_they_fit(hub: HubFixture, api: HfApi) -> None:
    hub.create_repo("zoo/a", {"x": b"x"})
    last = hub.faults.add(
        Fault.status(500, path=r"models/zoo/b", times=None),
        Fault.status(418, method="GET", times=2, body='{"error": "teapot"}'),
        Fault.status(404, headers={"X-Error-Code": "RevisionNotFound"}),
    )
    codes = []
    for _ in range(4):
        response = httpx2.get(f"{hub.endpoint}/api/models/zoo/a")
        codes.append(response.status_code)
    assert (codes, last.hits) == ([418, 418, 404, 200], 1)
    hub.faults.add(Fault.status(500, times=None))
    hub.faults.clear()
    assert httpx2.get(f"{hub.endpoint}/api/models/zoo/a").status_code == 200
