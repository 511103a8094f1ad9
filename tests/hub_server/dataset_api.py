"""Datasets: repositories whose name in `HubState.repos` begins with "datasets/"."""

from dataclasses import replace

from hub_server import files_api, model_api
from hub_server.messages import Response
from hub_server.routes import Call, Endpoint, route

PREFIX = "datasets/"


def _of_dataset(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint of models that answers for datasets."""

    def answer(call: Call) -> Response:
        return endpoint(replace(call, parts={**call.parts, "repo": PREFIX + call.repo_id}))

    return answer


@route("GET", "/api/datasets/{repo}/revision/{revision}")
@route("GET", "/api/datasets/{repo}")
def dataset_info(call: Call) -> Response:
    repo = call.hub.find(PREFIX + call.repo_id, call.user)
    commit = repo.resolve(call.parts.get("revision", "main"))
    info = model_api.describe(repo, commit, with_blobs=call.request.flag("blobs"))
    return Response.json({**info, "id": call.repo_id, "author": call.repo_id.split("/")[0]})


route("GET", "/api/datasets/{repo}/tree/{revision}")(_of_dataset(model_api.tree))
route("GET", "/api/datasets/{repo}/tree/{revision}/{path}")(_of_dataset(model_api.tree))
route("POST", "/api/datasets/{repo}/paths-info/{revision}")(_of_dataset(model_api.paths_info))
route("GET HEAD", "/datasets/{repo}/resolve/{revision}/{path}")(_of_dataset(files_api.resolve))
