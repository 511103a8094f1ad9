"""The test server as the real client sees it; and what that client does when things go wrong."""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from hypothesis import HealthCheck, given, settings, strategies as st

from hub_server import HubServer, UploadRules
from hub_server.fixtures import HubFixture

ALICE, BOB, READER = "hf_alice", "hf_bob", "hf_reader"
LARGE = random.Random(0).randbytes(300_000)
Operations = list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]
CARD = "---\nlicense: apache-2.0\ntags:\n- zoo\n---\n# Model\n"


@pytest.fixture
def api(hub: HubFixture) -> HfApi:
    """The client of a user who may write for `zoo`."""
    hub.rules = UploadRules(threshold=1000)
    hub.add_user("alice", ALICE, orgs=["zoo"])
    hub.add_user("bob", BOB)
    hub.add_user("alice", READER, orgs=["zoo"], role="read")
    return HfApi(token=ALICE)


@pytest.fixture
def repo(hub: HubFixture, api: HfApi) -> str:
    files: dict[str, str | bytes] = {
        "README.md": CARD,
        "config.json": "{}",
        "weights.bin": LARGE,
        "sub/deep/a.txt": "a",
    }
    hub.create_repo("zoo/model", files)
    return "zoo/model"


def lines(hub: HubFixture) -> list[str]:
    return [f"{request.method} {request.target}" for request in hub.requests]


# Accounts and repositories


def test_whoami_tells_the_account_and_the_role_of_its_token(hub: HubFixture, api: HfApi) -> None:
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["zoo"])
    assert me["auth"]["accessToken"]["role"] == "write"
    assert api.whoami(token=READER)["auth"]["accessToken"]["role"] == "read"
    assert hub.requests[0].token == ALICE


def test_a_wrong_token_is_a_plain_401(hub: HubFixture, api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        api.whoami(token="hf_wrong")
    assert caught.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        api.model_info(repo, token="hf_wrong")
    assert type(caught.value) is HfHubHTTPError


def test_a_repository_is_created_once(hub: HubFixture, api: HfApi) -> None:
    assert api.create_repo("zoo/new", private=True).repo_id == "zoo/new"
    assert hub.repos["zoo/new"].private
    assert list(hub.files("zoo/new")) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("zoo/new")
    assert caught.value.response.status_code == 409
    assert api.create_repo("zoo/new", exist_ok=True).repo_id == "zoo/new"
    assert api.create_repo("own").repo_id == "alice/own"


def test_creating_needs_a_write_token_and_membership(hub: HubFixture, api: HfApi) -> None:
    for token, name in ((BOB, "zoo/new"), (READER, "alice/new")):
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_repo(name, token=token)
        assert caught.value.response.status_code == 403
    hub.create_repo("zoo/old")
    assert api.create_repo("zoo/old", token=BOB, exist_ok=True).repo_id == "zoo/old"


def test_a_repository_is_hidden_deleted_and_moved(hub: HubFixture, api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, private=True)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(repo, token=False)
    api.update_repo_settings(repo, private=False, gated="manual")
    assert api.model_info(repo, token=False).gated == "manual"
    api.move_repo(repo, "zoo/renamed")
    assert api.model_info(repo).id == "zoo/renamed"
    api.delete_repo("zoo/renamed")
    assert not api.repo_exists("zoo/renamed")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("zoo/renamed")
    api.delete_repo("zoo/renamed", missing_ok=True)


def test_old_names_redirect_for_reading_and_writing(hub: HubFixture, api: HfApi, repo: str) -> None:
    hub.rename(repo, "zoo/new")
    assert Path(hf_hub_download(repo, "config.json")).read_text() == "{}"
    assert Path(hf_hub_download(repo, "weights.bin")).read_bytes() == LARGE
    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo)
    assert hub.files("zoo/new")["b.txt"] == b"b"


def test_ids_of_one_part_are_known(hub: HubFixture) -> None:
    hub.create_repo("gpt2", {"config.json": b"{}", "tree/main": b"x"})
    assert HfApi().model_info("gpt2").author is None
    assert sorted(HfApi().list_repo_files("gpt2")) == ["config.json", "tree/main"]
    assert Path(hf_hub_download("gpt2", "tree/main")).read_bytes() == b"x"


# Who may read what


def test_private_looks_like_missing(hub: HubFixture, api: HfApi) -> None:
    hub.create_repo("zoo/secret", {"a": b"a"}, private=True)
    for token, status in ((False, 401), (BOB, 404)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info("zoo/secret", token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("zoo/secret", "a", token=token)
    assert api.model_info("zoo/secret", token=READER).private
    assert Path(hf_hub_download("zoo/secret", "a", token=READER)).read_bytes() == b"a"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("zoo/missing")


def test_gated_files_need_a_grant_and_their_metadata_do_not(hub: HubFixture, api: HfApi) -> None:
    hub.create_repo("zoo/gated", {"a": b"a"}, gated=True)
    assert api.model_info("zoo/gated", token=False).gated == "auto"
    for token, status in ((False, 401), (BOB, 403)):
        with pytest.raises(GatedRepoError) as caught:
            hf_hub_download("zoo/gated", "a", token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            api.auth_check("zoo/gated", token=token)
    hub.grant("zoo/gated", "bob")
    assert Path(hf_hub_download("zoo/gated", "a", token=BOB)).read_bytes() == b"a"


def test_what_is_gone_has_its_own_error(hub: HubFixture, api: HfApi, repo: str) -> None:
    old = hub.head(repo)
    new = hub.commit(repo, {"b": b"b"})
    hub.delete_revision(repo, old)
    for revision in (old, "nowhere", new[:8]):
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(repo, "config.json", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            api.model_info(repo, revision=revision)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(repo, "missing")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "missing"))
    # The client remembers that the file isn't there, by the commit that the 404 names.
    assert (hub.cache / "models--zoo--model" / ".no_exist" / new / "missing").exists()


def test_writing_without_the_right_is_refused(hub: HubFixture, api: HfApi, repo: str) -> None:
    for token in (BOB, READER):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            api.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo, token=token)
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            api.create_tag(repo, tag="v1", token=token)
    with pytest.raises(RepositoryNotFoundError):  # how the client names a 401 here
        api.create_tag(repo, tag="v1", token=False)


# Commits


def test_a_folder_goes_up_small_files_in_the_commit_and_large_ones_before(
    hub: HubFixture, api: HfApi, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    contents = {"a.txt": b"a", "empty": b"", "sub/large.bin": LARGE, "README.md": CARD.encode()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    api.create_repo("zoo/up")
    hub.requests.clear()
    info = api.upload_folder(repo_id="zoo/up", folder_path=folder, commit_message="All of it")
    assert {**hub.files("zoo/up"), ".gitattributes": b""} == {**contents, ".gitattributes": b""}
    assert info.oid == hub.head("zoo/up")
    commit, first = hub.commits("zoo/up")
    assert (commit.title, commit.author, commit.parent) == ("All of it", "alice", first.id)
    assert [name for name, blob in commit.files.items() if blob.lfs] == ["sub/large.bin"]
    assert [
        (request.site, request.method, request.path.split("/")[-1]) for request in hub.requests
    ] == [
        ("hub", "POST", "validate-yaml"),
        ("hub", "POST", "validate-yaml"),  # once for the folder, once for the commit
        ("hub", "POST", "main"),  # preupload
        ("hub", "POST", "batch"),
        ("cdn", "PUT", commit.files["sub/large.bin"].sha256),
        ("hub", "POST", "verify"),
        ("hub", "POST", "main"),  # commit
    ]
    assert [request.token for request in hub.requests if request.site == "cdn"] == [None]


def test_an_unchanged_upload_makes_no_commit(hub: HubFixture, api: HfApi, repo: str) -> None:
    before = hub.head(repo)
    operations = [CommitOperationAdd(path, content) for path, content in hub.files(repo).items()]
    info = api.create_commit(repo, operations, commit_message="Same")
    assert info.oid == before == hub.head(repo)
    assert not hub.asked("/commit/")
    assert not hub.asked("", "PUT")


def test_a_large_file_that_is_there_is_not_sent_again(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="copy.bin", repo_id=repo)
    assert hub.files(repo)["copy.bin"] == LARGE
    assert not hub.asked("", "PUT")


def test_a_very_large_file_goes_up_in_parts(hub: HubFixture, api: HfApi, repo: str) -> None:
    hub.rules = UploadRules(threshold=1000, part_size=100_000)
    content = LARGE[::-1] + b"end"
    api.upload_file(path_or_fileobj=content, path_in_repo="big.bin", repo_id=repo)
    assert hub.files(repo)["big.bin"] == content
    puts = hub.asked("/upload/", "PUT")
    assert [len(request.body) for request in puts] == [100_000, 100_000, 100_000, 3]


def test_gitattributes_and_gitignore_are_heeded_where_asked(hub: HubFixture, api: HfApi) -> None:
    hub.rules = UploadRules(follow_gitattributes=True)
    api.create_repo("zoo/rules")
    operations = [
        CommitOperationAdd("tiny.safetensors", b"x"),
        CommitOperationAdd("tiny.zpz", b"x"),
        CommitOperationAdd("logs/run.log", b"x"),
        CommitOperationAdd(".gitignore", b"*.log\n"),
    ]
    api.create_commit("zoo/rules", operations, commit_message="Rules")
    files = hub.commits("zoo/rules")[0].files
    assert [name for name, blob in files.items() if blob.lfs] == ["tiny.safetensors"]
    assert "logs/run.log" not in files


def test_a_commit_onto_an_old_parent_is_refused(hub: HubFixture, api: HfApi, repo: str) -> None:
    seen = hub.head(repo)
    theirs = hub.commit(repo, {"config.json": b"[]"})
    operations = [CommitOperationAdd("mine.txt", b"mine")]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit(repo, operations, commit_message="Mine", parent_commit=seen)
    assert caught.value.response.status_code == 412
    assert hub.head(repo) == theirs
    info = api.create_commit(repo, operations, commit_message="Mine", parent_commit=theirs)
    assert [commit.id for commit in hub.commits(repo)] == [info.oid, theirs, seen]


def test_one_bad_operation_refuses_the_whole_commit(hub: HubFixture, api: HfApi, repo: str) -> None:
    before = hub.head(repo)
    operations: Operations = [CommitOperationAdd("new", b"x"), CommitOperationDelete("missing")]
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.create_commit(repo, operations, commit_message="Bad")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(repo, operations[:1], commit_message="Bad", revision="nowhere")
    assert hub.head(repo) == before


def test_files_and_folders_are_deleted_and_copied(hub: HubFixture, api: HfApi, repo: str) -> None:
    operations: Operations = [
        CommitOperationDelete("sub/"),
        CommitOperationDelete("config.json"),
        CommitOperationCopy("weights.bin", "again.bin"),
        CommitOperationCopy("README.md", "docs/README.md"),
    ]
    api.create_commit(repo, operations, commit_message="Move things")
    assert sorted(hub.files(repo)) == ["README.md", "again.bin", "docs/README.md", "weights.bin"]
    assert hub.files(repo)["again.bin"] == LARGE


def test_a_commit_with_a_large_file_that_was_not_sent_is_refused(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    addition = CommitOperationAdd("new.bin", b"x" * 5000)
    addition._upload_mode, addition._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api.create_commit(repo, [addition], commit_message="Not sent")


def test_an_upload_whose_content_is_another_is_refused(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    addition = CommitOperationAdd("new.bin", b"x" * 5000)
    addition.upload_info.sha256 = bytes(32)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.create_commit(repo, [addition], commit_message="Wrong hash")
    assert "new.bin" not in hub.files(repo)


def test_pull_requests_are_not_kept(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            repo, [CommitOperationAdd("a", b"a")], commit_message="PR", create_pr=True
        )
    assert caught.value.response.status_code == 501


def test_of_two_who_commit_at_once_one_is_told_to_try_again(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    parent = hub.head(repo)

    def commit(number: int) -> int:
        operations = [CommitOperationAdd("mine.txt", str(number).encode())]
        try:
            api.create_commit(repo, operations, commit_message="Race", parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(commit, range(4))) == [200, 412, 412, 412]
    assert [found.parent for found in hub.commits(repo)] == [parent, None]


PATHS = ("a", "b/c", "b/d", "e.bin", "README.md")
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from([None, b"", b"x", b"y", b"L" * 2000])),
    min_size=1,
    max_size=4,
    unique_by=lambda operation: operation[0],
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.lists(st.tuples(OPERATIONS, st.booleans()), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")
def test_any_history_of_commits_is_kept(
    hub: HubFixture, api: HfApi, history: list[tuple[list[tuple[str, bytes | None]], bool]]
) -> None:
    hub.repos.clear()
    hub.create_repo("zoo/m")
    heads, states = [hub.head("zoo/m")], [dict[str, bytes]()]
    for changes, on_old_parent in history:
        operations: Operations = []
        state = dict(states[-1])
        for path, content in changes:
            if content is not None:
                operations.append(CommitOperationAdd(path, content))
                state[path] = content
            elif path in states[-1]:
                operations.append(CommitOperationDelete(path))
                del state[path]
        parent = heads[0] if on_old_parent else heads[-1]
        try:
            info = api.create_commit(
                "zoo/m", operations, commit_message="Change", parent_commit=parent
            )
        except HfHubHTTPError as error:
            if (error.response.status_code, parent == heads[-1]) != (412, False):
                raise
        else:
            assert state == states[-1] or parent == heads[-1]
            if state != states[-1]:
                heads.append(info.oid)
                states.append(state)
        assert (hub.head("zoo/m"), hub.files("zoo/m")) == (heads[-1], states[-1])
    for head, state in zip(heads, states, strict=True):
        tree = api.list_repo_tree("zoo/m", revision=head, recursive=True)
        found = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        assert {path: entry.size for path, entry in found.items()} == {
            path: len(content) for path, content in state.items()
        }
        assert all((entry.lfs is not None) == (entry.size >= 1000) for entry in found.values())
    folder = Path(snapshot_download("zoo/m", revision=heads[-1]))
    assert {path: (folder / path).read_bytes() for path in states[-1]} == states[-1]


# Cards


def test_cards_are_checked_before_and_on_commit(hub: HubFixture, api: HfApi, repo: str) -> None:
    ModelCard(CARD.replace("# Model", "# Other")).push_to_hub(repo, token=ALICE)
    assert b"# Other" in hub.files(repo)["README.md"]
    assert ModelCard.load(repo).data.license == "apache-2.0"
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard("---\nlicense: Apache 2\n---\n").validate()
    bad_index = "---\nmodel-index:\n- name: m\n  results:\n  - task: {type: x}\n---\n"
    before = hub.head(repo)
    for card in ("---\nlicense: Apache 2\n---\n", "---\na: [\n---\n", bad_index):
        with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
        response = commit_by_hand(hub, repo, "README.md", card.encode())
        assert response.status_code == 400
    assert hub.head(repo) == before
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# Bare", path_in_repo="README.md", repo_id=repo)


def commit_by_hand(hub: HubFixture, repo: str, path: str, content: bytes) -> httpx2.Response:
    payload = [
        {"key": "header", "value": {"summary": "By hand"}},
        {"key": "file", "value": {"path": path, "content": content.decode()}},
    ]
    return httpx2.post(
        f"{hub.endpoint}/api/models/{repo}/commit/main",
        content="\n".join(json.dumps(line) for line in payload),
        headers={"Authorization": f"Bearer {ALICE}"},
    )


def test_paths_that_leave_the_repository_are_refused(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    for path in ("../x", "a/../x", "/x", ".git/config", "config.json/x", "sub"):
        assert commit_by_hand(hub, repo, path, b"x").status_code == 400, path


# What the Hub says about models


def test_model_info_is_made_of_card_config_and_weights(hub: HubFixture, api: HfApi) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(24)
    card = (
        "---\nlicense: mit\nlibrary_name: zoo\npipeline_tag: text-classification\n"
        "base_model: zoo/base\ntags: [small]\n---\n"
    )
    config = '{"model_type": "bert", "architectures": ["B"], "hidden_size": 3}'
    hub.create_repo(
        "zoo/m",
        {"README.md": card, "config.json": config, "model.safetensors": weights},
        large=["model.safetensors"],
    )
    info = api.model_info("zoo/m", files_metadata=True)
    commit = hub.commits("zoo/m")[0]
    assert (info.id, info.author, info.sha) == ("zoo/m", "zoo", commit.id)
    assert (info.library_name, info.pipeline_tag) == ("zoo", "text-classification")
    assert {"license:mit", "base_model:zoo/base", "small", "zoo"} <= set(info.tags or [])
    assert info.card_data is not None
    assert info.card_data.base_model == "zoo/base"
    assert info.config == {"model_type": "bert", "architectures": ["B"]}
    assert info.safetensors is not None
    assert info.safetensors.parameters == {"F32": 6}
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    large = siblings["model.safetensors"]
    assert large.lfs is not None
    assert (large.size, large.lfs.sha256) == (
        len(weights),
        commit.files["model.safetensors"].sha256,
    )
    assert siblings["config.json"].blob_id == git_hash(config.encode())
    assert siblings["config.json"].lfs is None
    narrow = api.model_info("zoo/m", expand=["downloads", "gated"])
    assert (narrow.id, narrow.downloads, narrow.gated, narrow.sha) == ("zoo/m", 0, False, None)


def git_hash(content: bytes) -> str:
    command = ["git", "hash-object", "--stdin"]
    return (
        subprocess.run(command, input=content, capture_output=True, check=True)
        .stdout.decode()
        .strip()
    )


def test_hashes_are_those_of_git(hub: HubFixture, api: HfApi, repo: str, tmp_path: Path) -> None:
    commit = hub.commits(repo)[0]
    for path, blob in commit.files.items():
        target = tmp_path / "git" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob.pointer if blob.lfs else blob.content)
    (tmp_path / "git" / "sub.txt").write_bytes(b"sorts before the folder")
    hub.commit(repo, {"sub.txt": b"sorts before the folder"})
    when = f"{int(hub.commits(repo)[1].date.timestamp())} +0000"
    author = {"NAME": "zoo", "EMAIL": "zoo@users.noreply.huggingface.co", "DATE": when}
    names = {
        f"GIT_{role}_{key}": value
        for key, value in author.items()
        for role in ("AUTHOR", "COMMITTER")
    }

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "core.autocrlf=false", *arguments],
            cwd=tmp_path / "git",
            env={**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull},
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    git("init", "-q")
    git("add", "README.md", "config.json", "weights.bin", "sub")
    assert git("write-tree") == commit.trees[""]
    git("commit", "-q", "-m", "initial commit")
    assert git("rev-parse", "HEAD") == commit.id
    assert git("rev-parse", "HEAD:sub") == commit.trees["sub"]
    git("add", "sub.txt")
    assert git("write-tree") == hub.commits(repo)[0].trees[""]


def test_models_are_listed_by_author_tag_and_name_in_pages(hub: HubFixture, api: HfApi) -> None:
    for number in range(5):
        hub.create_repo(f"zoo/m{number}", {"README.md": CARD})
    hub.create_repo("zoo/plain", private=True)
    hub.create_repo("other/m0", {"README.md": CARD})
    hub.page_size = 2
    names = [info.id for info in api.list_models(author="zoo", filter="zoo", token=False)]
    assert names == [f"zoo/m{number}" for number in range(5)]
    assert len(hub.requests) == 3
    assert sorted(info.id for info in api.list_models(search="M0")) == ["other/m0", "zoo/m0"]
    assert "zoo/plain" in [info.id for info in api.list_models(author="zoo")]
    assert len(list(api.list_models(author="zoo", limit=3))) == 3
    full = next(iter(api.list_models(author="zoo", full=True, cardData=True)))
    assert full.sha == hub.head("zoo/m0")
    assert full.card_data is not None
    assert full.card_data.license == "apache-2.0"


def test_collections_list_the_models_that_one_may_see(hub: HubFixture, api: HfApi) -> None:
    hub.create_repo("zoo/a")
    hub.create_repo("zoo/b", private=True)
    slug = hub.add_collection("Small Models", "zoo", ["zoo/a", "zoo/b", "zoo/gone"]).slug
    assert slug.startswith("zoo/small-models-")
    assert [item.item_id for item in api.get_collection(slug).items] == ["zoo/a", "zoo/b"]
    assert [item.item_id for item in api.get_collection(slug, token=False).items] == ["zoo/a"]
    assert [found.slug for found in api.list_collections(owner="zoo")] == [slug]
    assert list(api.list_collections(owner="bob")) == []
    with pytest.raises(HfHubHTTPError) as caught:
        api.get_collection("zoo/none-0123456789abcdef01234567")
    assert caught.value.response.status_code == 404


def test_trees_are_listed_flat_deep_and_in_pages(hub: HubFixture, api: HfApi, repo: str) -> None:
    top = [entry.path for entry in api.list_repo_tree(repo)]
    assert top == ["sub", "README.md", "config.json", "weights.bin"]
    hub.page_size = 2
    hub.requests.clear()
    deep = [entry.path for entry in api.list_repo_tree(repo, recursive=True)]
    assert deep == ["sub", "sub/deep", "README.md", "config.json", "sub/deep/a.txt", "weights.bin"]
    assert len(hub.requests) == 3
    assert [entry.path for entry in api.list_repo_tree(repo, "sub/deep")] == ["sub/deep/a.txt"]


def test_paths_tell_their_last_commit(hub: HubFixture, api: HfApi, repo: str) -> None:
    first = hub.head(repo)
    second = hub.commit(repo, {"sub/deep/b.txt": b"b"})
    found = api.get_paths_info(repo, ["config.json", "sub", "weights.bin", "no"], expand=True)
    assert [entry.path for entry in found] == ["config.json", "sub", "weights.bin"]
    assert [entry.last_commit and entry.last_commit.oid for entry in found] == [
        first,
        second,
        first,
    ]
    file: Any = found[2]
    assert file.lfs.sha256 == hub.commits(repo)[0].files["weights.bin"].sha256


def test_references_and_history(hub: HubFixture, api: HfApi, repo: str) -> None:
    first = hub.head(repo)
    second = hub.commit(repo, {"b": b"b"}, message="Second")
    api.create_tag(repo, tag="v1", revision=first)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(repo, tag="v1")
    assert caught.value.response.status_code == 409
    api.create_tag(repo, tag="v1", exist_ok=True)
    api.create_branch(repo, branch="feature/x", revision="v1")
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {
        "main": second,
        "feature/x": first,
    }
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", first)]
    assert (refs.converts, refs.pull_requests) == ([], [])
    history = api.list_repo_commits(repo)
    assert [commit.commit_id for commit in history] == [second, first]
    assert history[0].title == "Second"
    assert "b" not in api.list_repo_files(repo, revision="feature/x")
    api.delete_branch(repo, branch="feature/x")
    api.delete_tag(repo, tag="v1")
    assert (list(hub.branches(repo)), hub.tags(repo)) == (["main"], {})
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(repo, branch="main")
    with pytest.raises(RevisionNotFoundError, match="Reference does not exist"):
        api.delete_tag(repo, tag="v1")


# Downloads


def test_a_large_file_comes_from_another_origin_without_the_token(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    path = hf_hub_download(repo, "weights.bin", token=ALICE)
    assert Path(path).read_bytes() == LARGE
    seen = [(request.site, request.method, request.token) for request in hub.requests]
    assert seen == [("hub", "HEAD", ALICE), ("cdn", "GET", None)]
    blob = hub.commits(repo)[0].files["weights.bin"]
    assert Path(path).resolve().name == blob.sha256


def test_a_small_file_is_asked_for_twice_and_named_by_its_git_hash(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    path = hf_hub_download(repo, "sub/deep/a.txt")
    assert [request.method for request in hub.requests] == ["HEAD", "GET"]
    assert Path(path).resolve().name == git_hash(b"a")
    assert Path(path).parts[-4] == hub.head(repo)


def test_branches_tags_and_hashes_name_revisions(hub: HubFixture, api: HfApi, repo: str) -> None:
    first = hub.head(repo)
    hub.tag(repo, "v1")
    second = hub.commit(repo, {"config.json": b"[]"})
    hub.branch(repo, "other/branch", first)
    for revision, content in (
        ("main", "[]"),
        (second, "[]"),
        ("v1", "{}"),
        (first, "{}"),
        ("other/branch", "{}"),
    ):
        path = hf_hub_download(repo, "config.json", revision=revision)
        assert Path(path).read_text() == content


def test_a_snapshot_of_a_hash_asks_nothing_once_it_is_cached(
    hub: HubFixture, api: HfApi, repo: str
) -> None:
    revision = hub.head(repo)
    folder = snapshot_download(repo, revision=revision, allow_patterns=["*.json", "sub/**"])
    found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert found == {"config.json", "sub/deep/a.txt"}
    assert lines(hub)[0] == f"GET /api/models/{repo}/tree/{revision}?recursive=true&expand=false"
    hub.requests.clear()
    again = snapshot_download(repo, revision=revision, allow_patterns=["*.json", "sub/**"])
    assert (again, hub.requests) == (folder, [])
    hf_hub_download(repo, "config.json", revision=revision)
    assert hub.requests == []
    snapshot_download(repo, allow_patterns="*.json")  # a branch is looked up
    assert lines(hub) == [f"GET /api/models/{repo}/revision/main"]


def test_ranges(hub: HubFixture, api: HfApi, repo: str) -> None:
    url = f"{hub.endpoint}/{repo}/resolve/main/weights.bin"
    with httpx2.Client(follow_redirects=True) as client:
        for asked, expected in (
            ("bytes=0-9", LARGE[:10]),
            ("bytes=299990-", LARGE[-10:]),
            ("bytes=-10", LARGE[-10:]),
            ("bytes=299990-999999", LARGE[-10:]),
        ):
            response = client.get(url, headers={"Range": asked})
            assert (response.status_code, response.content) == (206, expected)
        response = client.get(url, headers={"Range": "bytes=300000-"})
        assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */300000")


def test_checksums_are_verified_by_the_tree_alone(hub: HubFixture, api: HfApi, repo: str) -> None:
    folder = Path(snapshot_download(repo))
    hub.requests.clear()
    assert api.verify_repo_checksums(repo).mismatches == []
    assert lines(hub) == [
        f"GET /api/models/{repo}/tree/{hub.head(repo)}?recursive=true&expand=false"
    ]
    (folder / "config.json").resolve().write_bytes(b"[]")
    assert [found["path"] for found in api.verify_repo_checksums(repo).mismatches] == [
        "config.json"
    ]


def test_a_process_of_its_own_reaches_this_server(hub: HubFixture, api: HfApi) -> None:
    hub.create_repo("zoo/secret", {"a": b"secret"}, private=True)
    code = "import huggingface_hub as h; print(open(h.hf_hub_download('zoo/secret', 'a')).read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(token=ALICE),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "secret"
    assert isinstance(try_to_load_from_cache("zoo/secret", "a"), str)
    assert {request.token for request in hub.requests} == {ALICE}


def test_fixtures_that_come_after_the_client_say_so() -> None:
    code = "import huggingface_hub.constants, hub_server.fixtures"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert "huggingface_hub was imported before hub_server.fixtures" in done.stderr


@pytest.mark.filterwarnings("error")
def test_a_server_stops_with_connections_open(repo: str) -> None:
    with HubServer() as other, httpx2.Client() as client:
        other.create_repo("zoo/other", {"a": b"a"})
        assert client.get(f"{other.endpoint}/zoo/other/resolve/main/a").content == b"a"
        threads = threading.active_count()
    assert threading.active_count() < threads
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(other.endpoint)


def test_only_loopback_is_reached(hub: HubFixture) -> None:
    for host in ("192.0.2.1", "huggingface.co"):
        with pytest.raises(RuntimeError, match="only loopback"):
            httpx2.get(f"http://{host}/")
    with socket.socket() as bare, pytest.raises(RuntimeError, match="only loopback"):
        bare.connect(("192.0.2.1", 80))
