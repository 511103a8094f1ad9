"""Files on their way to the Hub and from it: upload, commit, download."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import quote, urlencode

from hub_server import cards
from hub_server.messages import Request, Response
from hub_server.routes import Call, route
from hub_server.storage import Blob, Change, Commit, HubError, Repo, ignore_patterns, matches


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    commit = repo.resolve(call.parts["revision"])
    data = call.request.json()
    stored = commit.files.get(".gitignore")
    gitignore = data.get("gitIgnore", stored.content.decode() if stored else "")
    attributes = commit.files.get(".gitattributes")
    answers = []
    for file in data.get("files", []):
        path, size = file["path"], file["size"]
        is_large = call.hub.rules.is_large(path, size, attributes.content if attributes else b"")
        entry = {
            "path": path,
            "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": matches(path, ignore_patterns(gitignore)),
        }
        if path in commit.files:
            entry["oid"] = commit.files[path].etag
        answers.append(entry)
    return Response.json({"files": answers, "commitOid": commit.id})


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Response:
    data = call.request.json()
    if data.get("operation") != "upload":
        raise HubError(501, "Only uploads are spoken here")
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    objects = []
    for wanted in data.get("objects", []):
        entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.large_objects:
            place = f"{repo.id}/{wanted['oid']}"
            verify = f"{call.hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"
            expiry = {"expires_in": 900}
            entry["authenticated"] = True
            entry["actions"] = {
                "upload": {**_destination(call, data, place, wanted["size"]), **expiry},
                "verify": {"href": verify, "header": {}, **expiry},
            }
            call.hub.uploads.add(place)
        objects.append(entry)
    in_parts = any("header" in entry.get("actions", {}).get("upload", {}) for entry in objects)
    transfer = "multipart" if in_parts else "basic"
    answer = Response.json({"transfer": transfer, "objects": objects, "hash_algo": "sha256"})
    answer.headers["Content-Type"] = "application/vnd.git-lfs+json; charset=utf-8"
    return answer


def _destination(call: Call, batch: dict[str, Any], place: str, size: int) -> dict[str, Any]:
    """Say where an object goes: in one piece or, if it is large and the client can, in parts."""
    address = f"{call.hub.cdn}/upload/{place}"
    part = call.hub.rules.part_size
    if part is None or size <= part or "multipart" not in batch.get("transfers", []):
        return {"href": f"{address}?X-Amz-Expires=900"}
    repo_id, oid = place.rsplit("/", 1)
    header = {"chunk_size": str(part)}
    for number in range(1, -(-size // part) + 1):
        header[f"{number:05d}"] = f"{address}/{number}?X-Amz-Expires=900"
    complete = f"{call.hub.endpoint}/{repo_id}.git/info/lfs/objects/complete/{oid}"
    return {"href": complete, "header": header}


@route("PUT", "/upload/{repo}/{oid}/{name}", site="cdn")
def upload_part(call: Call) -> Response:
    place = f"{call.repo_id}/{call.parts['oid']}"
    if place not in call.hub.uploads:
        raise HubError(403, "Request has expired")
    body = call.request.body
    call.hub.parts[f"{place}/{int(call.parts['name'])}"] = body
    return Response(200, b"", {"ETag": _etag(body)})


@route("POST", "/{repo}.git/info/lfs/objects/complete/{oid}")
def complete(call: Call) -> Response:
    """Put the parts together. The address is signed on the real Hub: no token is asked for."""
    place = f"{call.repo_id}/{call.parts['oid']}"
    content = b""
    for part in call.request.json().get("parts", []):
        piece = call.hub.parts.get(f"{place}/{part['partNumber']}")
        if piece is None or _etag(piece) != part["etag"]:
            raise HubError(400, "InvalidPart")
        content += piece
    if hashlib.sha256(content).hexdigest() != call.parts["oid"]:
        raise HubError(400, "The parts make another file")
    call.hub.repos[call.repo_id].large_objects[call.parts["oid"]] = content
    return Response.json({})


@route("PUT", "/upload/{repo}/{oid}", site="cdn")
def upload(call: Call) -> Response:
    """Keep what is sent to a signed address, as the object store does: no token is asked for."""
    oid, body = call.parts["oid"], call.request.body
    if f"{call.repo_id}/{oid}" not in call.hub.uploads or call.repo_id not in call.hub.repos:
        raise HubError(403, "Request has expired")
    if hashlib.sha256(body).hexdigest() != oid:
        raise HubError(400, "XAmzContentSHA256Mismatch")
    call.hub.repos[call.repo_id].large_objects[oid] = body
    return Response(200, b"", {"ETag": _etag(body)})


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@route("POST", "/{repo}.git/info/lfs/objects/verify")
def verify(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    data = call.request.json()
    content = repo.large_objects.get(str(data.get("oid")))
    if content is None or len(content) != data.get("size"):
        raise HubError(404, "Object does not exist")
    return Response.json({})


@route("POST", "/api/models/{repo}/commit/{revision}")
def commit(call: Call) -> Response:
    if call.request.flag("create_pr"):
        raise HubError(501, "Pull requests are not kept here")
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    change = _read_change(call.request, repo)
    author = call.user.name if call.user else ""
    made = repo.apply(change, call.parts["revision"], author)
    url = f"{call.hub.endpoint}/{repo.id}/commit/{made.id}"
    return Response.json(
        {"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""}
    )


def _read_change(request: Request, repo: Repo) -> Change:
    """Read the lines of a commit; a problem in any of them refuses all."""
    change: Change | None = None
    try:
        for line in request.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                change = Change(
                    value["summary"], value.get("description", ""), value.get("parentCommit")
                )
            elif change is None:
                raise HubError(400, "The header must come first")
            elif key == "file":
                content = value["content"]
                decoded = (
                    base64.b64decode(content)
                    if value.get("encoding") == "base64"
                    else content.encode()
                )
                change.additions[_path(value)] = Blob(decoded, lfs=False)
            elif key == "lfsFile":
                content = repo.large_objects.get(value["oid"])
                if content is None or value.get("size", len(content)) != len(content):
                    raise HubError(400, "LFS pointer pointed to a file that does not exist")
                change.additions[_path(value)] = Blob(content, lfs=True)
            elif key == "deletedFile":
                change.deletions.append(_path(value))
            elif key == "deletedFolder":
                change.folder_deletions.append(_path(value))
            elif key == "copyFile":
                move = (value["srcPath"], _path(value), value.get("srcRevision"))
                change.copies.append(move)
            else:
                raise HubError(400, f'"key" must not be {key}')
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(400, f"Invalid commit payload: {error!r}") from None
    if change is None or not change.title:
        raise HubError(400, '"summary" is required')
    if readme := change.additions.get("README.md"):
        errors, _ = cards.validate(readme.content.decode(errors="replace"))
        if errors:
            raise HubError(400, "Invalid metadata in README.md.\n" + "\n".join(errors))
    return change


def _path(value: dict[str, Any]) -> str:
    path = value["path"]
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f'Invalid path: "{path}"')
    return str(path)


@route("GET HEAD", "/{repo}/resolve/{revision}/{path}")
def resolve(call: Call) -> Response:
    repo = call.hub.find(call.repo_id, call.user)
    call.hub.check_gate(repo, call.user)
    commit = repo.resolve(call.parts["revision"])
    path = call.parts["path"]
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", commit.id)
    blob = commit.files[path]
    if blob.lfs:
        return _redirect_to_cdn(call, repo, commit, path, blob)
    answer = send(call.request, blob)
    answer.headers["X-Repo-Commit"] = commit.id
    answer.headers["Content-Disposition"] = _disposition(path)
    answer.headers["Content-Type"] = "text/plain; charset=utf-8"
    return answer


def _redirect_to_cdn(call: Call, repo: Repo, commit: Commit, path: str, blob: Blob) -> Response:
    signed = {
        "response-content-disposition": _disposition(path),
        "Expires": "4102444800",
        "Signature": hashlib.sha256(f"{repo.id}{blob.sha256}".encode()).hexdigest()[:32],
    }
    answer = Response.redirect(
        f"{call.hub.cdn}/cdn/{quote(repo.id)}/{blob.sha256}?{urlencode(signed)}", 302
    )
    answer.headers.update(
        {
            "X-Repo-Commit": commit.id,
            "X-Linked-Size": str(len(blob.content)),
            "X-Linked-ETag": f'"{blob.etag}"',
            "ETag": f'"{blob.etag}"',
            "Accept-Ranges": "bytes",
        }
    )
    return answer


@route("GET HEAD", "/cdn/{repo}/{oid}", site="cdn")
def cdn(call: Call) -> Response:
    """Send a large file. Who knows the signed address may have it."""
    # By content, not by repository: addresses stay good when a repository is renamed.
    for repo in call.hub.repos.values():
        if content := repo.large_objects.get(call.parts["oid"]):
            answer = send(call.request, Blob(content, lfs=True))
            disposition = call.request.parameter("response-content-disposition")
            answer.headers["Content-Disposition"] = disposition or "inline"
            return answer
    raise HubError(403, "AccessDenied")


def send(request: Request, blob: Blob) -> Response:
    """Answer with a file or with the range of it that was asked for."""
    content = blob.content
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
    }
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not match or match.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = match.groups()
    begin = int(first) if first else max(0, len(content) - int(last))
    end = min(int(last) + 1 if first and last else len(content), len(content))
    if begin >= end:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
    return Response(206, content[begin:end], headers, offset=begin)


def _disposition(path: str) -> str:
    name = path.split("/")[-1]
    plain = name.encode("ascii", "replace").decode().replace('"', "'")
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{plain}\";"
