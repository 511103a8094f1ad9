"""Accounts, repositories as wholes, collections, and the check of model cards."""

import hashlib
from typing import Any

from hub_server import cards
from hub_server.messages import Response
from hub_server.paging import page
from hub_server.routes import Call, route
from hub_server.state import Collection
from hub_server.storage import HubError, timestamp


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Response:
    user = call.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return Response.json(
        {
            "type": "user",
            "id": object_id(user.name),
            "name": user.name,
            "fullname": user.name.title(),
            "isPro": False,
            "avatarUrl": "/avatars/user.svg",
            "orgs": [
                {
                    "type": "org",
                    "id": object_id(org),
                    "name": org,
                    "fullname": org.title(),
                    "isEnterprise": False,
                    "roleInOrg": "write",
                }
                for org in user.orgs
            ],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "tests", "role": user.role},
            },
        }
    )


def _named(call: Call) -> tuple[str, str]:
    """Return namespace and full id of the repository that the request's body names."""
    data = call.request.json()
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    if data.get("type", "model") != "model":
        raise HubError(501, "Only models are kept here")
    name = data.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise HubError(400, '"name" must be a repository name')
    namespace = data.get("organization") or call.user.name
    return namespace, f"{namespace}/{name}"


@route("POST", "/api/repos/create")
def create(call: Call) -> Response:
    namespace, repo_id = _named(call)
    data = call.request.json()
    if call.user is None or call.user.role != "write" or not call.user.belongs_to(namespace):
        raise HubError(
            403,
            f'You don\'t have the rights to create a model under the namespace "{namespace}"',
        )
    url = f"{call.hub.endpoint}/{repo_id}"
    if repo_id in call.hub.repos:
        message = "You already created this model repo"
        return Response.json({"error": message, "url": url}, 409, X_Error_Message=message)
    private = data.get("visibility") == "private" or data.get("private") is True
    call.hub.create_repo(repo_id, private=private, gitattributes=True)
    return Response.json(
        {"url": url, "name": repo_id, "id": object_id(repo_id), "private": private}
    )


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Response:
    _, repo_id = _named(call)
    call.hub.find_for_writing(repo_id, call.user)
    call.hub.delete_repo(repo_id)
    return Response(200, b"OK", {"Content-Type": "text/plain; charset=utf-8"})


@route("POST", "/api/repos/move")
def move(call: Call) -> Response:
    data = call.request.json()
    old, new = str(data.get("fromRepo")), str(data.get("toRepo"))
    call.hub.find_for_writing(old, call.user)
    if new in call.hub.repos:
        raise HubError(409, f"The model {new} already exists")
    if call.user is None or not call.user.belongs_to(new.split("/")[0]):
        raise HubError(403, f"You don't have the rights to move a model to {new}")
    call.hub.rename(old, new)
    return Response.json({"success": True})


@route("PUT", "/api/models/{repo}/settings")
def settings(call: Call) -> Response:
    repo = call.hub.find_for_writing(call.repo_id, call.user)
    data = call.request.json()
    visibility = data.get("visibility")
    if visibility not in (None, "public", "private"):
        raise HubError(400, '"visibility" must be one of [public, private]')
    if data.get("gated", False) not in (False, "auto", "manual"):
        raise HubError(400, '"gated" must be one of [auto, manual, false]')
    if visibility is not None or "private" in data:
        repo.private = visibility == "private" or data.get("private") is True
    if "gated" in data:
        repo.gated = data["gated"]
    return Response.json({"private": repo.private, "gated": repo.gated})


@route("GET", "/api/models/{repo}/auth-check")
def may_read(call: Call) -> Response:
    call.hub.check_gate(call.hub.find(call.repo_id, call.user), call.user)
    return Response.json({})


@route("GET", "/api/models/{repo}/auth-check/write")
def may_write(call: Call) -> Response:
    call.hub.find_for_writing(call.repo_id, call.user)
    return Response.json({})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    errors, warnings = cards.validate(str(call.request.json().get("content", "")))
    status = 400 if errors else 200
    if call.request.headers.get("accept") == "text/plain":
        return Response(
            status, "\n".join(errors or ["OK"]).encode(), {"Content-Type": "text/plain"}
        )
    found = {"errors": errors, "warnings": warnings}
    return Response.json(
        {name: [{"message": message} for message in found[name]] for name in found}, status
    )


@route("GET", "/api/collections")
def list_collections(call: Call) -> Response:
    owners = call.request.parameters("owner")
    wanted = call.request.parameters("item")
    found = [
        _describe(call, collection)
        for collection in call.hub.collections.values()
        if _visible(call, collection)
        and (not owners or collection.owner in owners)
        and all(item.removeprefix("models/") in collection.items for item in wanted)
    ]
    for entry in found:
        del entry["position"]  # the client numbers them itself
        entry["items"] = entry["items"][:4]  # the Hub lists four of each collection here
    return page(call, found, 100)


@route("GET", "/api/collections/{slug}")
def collection(call: Call) -> Response:
    slug = call.parts["slug"]
    found = call.hub.collections.get(slug)
    if found is None:
        # The Hub goes by the hash at the end: the words before it may have changed.
        ending = slug.rpartition("-")[2]
        same = [
            other for other in call.hub.collections if ending == other.rpartition("-")[2] != other
        ]
        found = call.hub.collections[same[0]] if same else None
    if found is None or not _visible(call, found):
        raise HubError(404, "Collection not found")
    return Response.json(_describe(call, found))


def _visible(call: Call, collection: Collection) -> bool:
    return not collection.private or (
        call.user is not None and call.user.belongs_to(collection.owner)
    )


def _describe(call: Call, collection: Collection) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for name in collection.items:
        repo = call.hub.repos.get(call.hub.moved.get(name, name))
        if repo is None or not call.hub.readable(repo, call.user):
            continue  # deleted and hidden repositories are left out
        items.append(
            {
                "_id": object_id(f"{collection.slug}/{name}"),
                "position": len(items),
                "type": "model",
                "id": repo.id,
                "author": repo.namespace,
                "private": repo.private,
                "gated": repo.gated,
                "repoType": "model",
                "downloads": 0,
                "likes": 0,
                "lastModified": timestamp(repo.history("main")[0].date),
            }
        )
    return {
        "slug": collection.slug,
        "title": collection.title,
        **({"description": collection.description} if collection.description else {}),
        "lastUpdated": timestamp(collection.updated),
        "gating": False,
        "owner": {
            "_id": object_id(collection.owner),
            "name": collection.owner,
            "fullname": collection.owner.title(),
            "avatarUrl": "/avatars/user.svg",
            "type": "user",
        },
        "items": items,
        "position": 0,
        "theme": "blue",
        "private": collection.private,
        "upvotes": 0,
        "isUpvotedByUser": False,
    }


def object_id(name: str) -> str:
    """Return something that looks like an id of the Hub's database."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]
