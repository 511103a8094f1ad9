"""What the Hub says about models: information, lists, trees, references, commits."""

import json
import struct
from collections import Counter
from math import prod
from typing import Any
from urllib.parse import parse_qs

from hub_server import cards
from hub_server.account_api import object_id
from hub_server.messages import Response
from hub_server.paging import page
from hub_server.routes import Call, route
from hub_server.storage import Blob, Commit, HubError, Repo, timestamp


@route("GET", "/api/models")
def list_models(call: Call) -> Response:
    request = call.request
    found = []
    for repo in call.hub.repos.values():
        if not call.hub.readable(repo, call.user) or "main" not in repo.branches:
            continue
        info = describe(repo, repo.resolve("main"))
        if request.parameters("author") and repo.namespace not in request.parameters("author"):
            continue
        search = " ".join(request.parameters("search")).lower()
        if search not in repo.id.lower():
            continue
        wanted = request.parameters("filter") + request.parameters("pipeline_tag")
        if not set(wanted) <= {*info["tags"], info.get("library_name"), info.get("pipeline_tag")}:
            continue
        if (gated := request.parameter("gated")) and (gated == "true") != bool(repo.gated):
            continue
        found.append(info)
    order = request.parameter("sort")
    if order in ("lastModified", "createdAt"):
        found.sort(key=lambda info: str(info[order]), reverse=True)
    expand = request.parameters("expand")
    brief = "_id id modelId likes private downloads tags pipeline_tag library_name createdAt"
    full = f"{brief} author sha lastModified gated disabled siblings"
    names = set((full if request.flag("full") else brief).split())
    for parameter in ("config", "cardData"):
        if request.flag(parameter):
            names.add(parameter)
    return page(call, [_select(info, expand, names) for info in found], 1000)


@route("GET", "/api/models/{repo}/revision/{revision}")
@route("GET", "/api/models/{repo}")
def model_info(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)
    commit = repo.resolve(call.parts.get("revision", "main"))
    info = describe(repo, commit, with_blobs=call.request.flag("blobs"))
    if call.request.flag("securityStatus"):
        info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    return Response.json(_select(info, call.request.parameters("expand"), set(info)))


def _select(info: dict[str, Any], expand: list[str], names: set[str]) -> dict[str, Any]:
    if expand:
        names = {"_id", "id", *expand}
    return {name: value for name, value in info.items() if name in names}


def describe(repo: Repo, commit: Commit, with_blobs: bool = False) -> dict[str, Any]:
    """Return all that the Hub knows about a model at a commit."""
    readme = commit.files.get("README.md")
    card = cards.front_matter(readme.content.decode(errors="replace")) if readme else None
    parameters = _count_parameters(commit)
    tags = (["safetensors"] if parameters else []) + cards.tags_of(card or {})
    info: dict[str, Any] = {
        "_id": object_id(f"{repo.id}{repo.created}"),
        "id": repo.id,
        "modelId": repo.id,
        "private": repo.private,
        "sha": commit.id,
        "lastModified": timestamp(repo.history("main")[0].date if repo.branches else commit.date),
        "createdAt": timestamp(repo.created),
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "spaces": [],
        "siblings": [_sibling(path, blob, with_blobs) for path, blob in commit.files.items()],
        "usedStorage": sum(len(content) for content in repo.large_objects.values()),
    }
    if repo.namespace:
        info["author"] = repo.namespace
    for name in ("library_name", "pipeline_tag"):
        if card and card.get(name):
            info[name] = card[name]
    if card:
        # As the Hub sends it: dates and the like are text in JSON.
        info["cardData"] = json.loads(json.dumps(card, default=str))
        if "model-index" in card:
            info["model-index"] = info["cardData"]["model-index"]
    if config := _config(commit):
        info["config"] = config
    if parameters:
        info["safetensors"] = {"parameters": parameters, "total": sum(parameters.values())}
    return info


def _sibling(path: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    entry: dict[str, Any] = {"rfilename": path, "blobId": blob.oid, "size": len(blob.content)}
    if blob.lfs:
        size, pointer = len(blob.content), len(blob.pointer)
        entry["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": pointer}
    return entry


def _config(commit: Commit) -> dict[str, Any]:
    """Return what the Hub shows of `config.json`."""
    blob = commit.files.get("config.json")
    try:
        config = json.loads(blob.content) if blob else {}
    except ValueError:
        return {}
    shown = ("architectures", "auto_map", "model_type", "quantization_config")
    return {key: config[key] for key in shown if key in config} if isinstance(config, dict) else {}


def _count_parameters(commit: Commit) -> dict[str, int]:
    """Count values by data type, from the headers of files in safetensors format."""
    counts: Counter[str] = Counter()
    for path, blob in commit.files.items():
        if "/" in path or not path.endswith(".safetensors") or len(blob.content) < 8:
            continue
        (length,) = struct.unpack("<Q", blob.content[:8])
        try:
            header = json.loads(blob.content[8 : 8 + length])
            for name, tensor in header.items():
                if name != "__metadata__":
                    counts[tensor["dtype"]] += prod(tensor["shape"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # not a readable file: the Hub shows no count then
    return dict(counts)


@route("GET", "/api/models/{repo}/tree/{revision}")
@route("GET", "/api/models/{repo}/tree/{revision}/{path}")
def tree(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)
    revision, folder = call.parts["revision"], call.parts.get("path", "").strip("/")
    commit = repo.resolve(revision)
    if folder and folder not in commit.trees:
        raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound", commit.id)
    prefix = f"{folder}/" if folder else ""
    paths = [path for path in (*commit.trees, *commit.files) if path and path != folder]
    paths = [path for path in paths if path.startswith(prefix)]
    if not call.request.flag("recursive"):
        paths = [path for path in paths if "/" not in path[len(prefix) :]]
    paths.sort(key=lambda path: (path not in commit.trees, path))
    expand = call.request.flag("expand")
    entries = [path_info(repo, commit, path, expand) for path in paths]
    return page(call, entries, 100 if expand else 1000)


@route("POST", "/api/models/{repo}/paths-info/{revision}")
def paths_info(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)
    commit = repo.resolve(call.parts["revision"])
    if "json" in call.request.headers.get("content-type", ""):
        data = call.request.json()
        paths, expand = [str(path) for path in data.get("paths", [])], data.get("expand") is True
    else:
        form = parse_qs(call.request.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    if len(paths) > 1000:
        raise HubError(413, "too many parameters")
    paths = [path.strip("/") for path in paths]
    known = [path for path in paths if path in commit.files or (path and path in commit.trees)]
    return Response.json([path_info(repo, commit, path, expand) for path in known])


def path_info(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """Describe a file or a folder; a path without either is left out by the callers."""
    entry: dict[str, Any]
    if path in commit.files:
        blob = commit.files[path]
        entry = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": path}
        if blob.lfs:
            size, pointer = len(blob.content), len(blob.pointer)
            entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": pointer}
    else:
        entry = {"type": "directory", "oid": commit.trees[path], "size": 0, "path": path}
    if expand:
        last = repo.last_change(commit.id, path)
        entry["lastCommit"] = {"id": last.id, "title": last.title, "date": timestamp(last.date)}
        if entry["type"] == "file":
            entry["securityFileStatus"] = {
                "status": "safe",
                "avScan": {"status": "safe"},
                "pickleImportScan": None,
            }
    return entry


@route("GET", "/api/models/{repo}/refs")
def refs(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": target}
            for name, target in names.items()
        ]

    answer: dict[str, Any] = {
        "tags": listed("tags", repo.tags),
        "branches": listed("heads", repo.branches),
        "converts": [],
    }
    if call.request.flag("include_prs"):
        answer["pullRequests"] = []
    return Response.json(answer)


@route("GET", "/api/models/{repo}/commits/{revision}")
def commits(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)
    history = repo.history(call.parts["revision"])
    formatted = "formatted" in call.request.parameters("expand")
    entries = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author, "avatar": "/avatars/user.svg"}],
            "date": timestamp(commit.date),
            **(
                {"formatted": {"title": commit.title, "message": commit.message}}
                if formatted
                else {}
            ),
        }
        for commit in history
    ]
    answer = page(call, entries, 50)
    answer.headers["X-Total-Count"] = str(len(history))
    return answer


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    name = call.request.json().get("tag")
    if not isinstance(name, str) or not name:
        raise HubError(400, '"tag" must be a string')
    target = repo.resolve(call.parts["revision"])
    if name in repo.tags:
        raise HubError(409, f"Tag reference exists already: refs/tags/{name}")
    repo.tags[name] = target.id
    return Response.json({"ref": f"refs/tags/{name}"})


@route("DELETE", "/api/models/{repo}/tag/{name}")
def delete_tag(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    if call.parts["name"] not in repo.tags:
        raise HubError(404, "Reference does not exist", "RevisionNotFound")
    del repo.tags[call.parts["name"]]
    return Response.json({})


@route("POST", "/api/models/{repo}/branch/{name}")
def create_branch(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    name = call.parts["name"]
    if name in repo.branches:
        raise HubError(409, f"Reference refs/heads/{name} already exists")
    repo.branches[name] = repo.resolve(call.request.json().get("startingPoint") or "main").id
    return Response.json({"ref": f"refs/heads/{name}"})


@route("DELETE", "/api/models/{repo}/branch/{name}")
def delete_branch(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    name = call.parts["name"]
    if name == "main":
        raise HubError(403, "Cannot delete refs/heads/main")
    if name not in repo.branches:
        raise HubError(404, "Reference does not exist", "RevisionNotFound")
    del repo.branches[name]
    return Response.json({})
