"""The commands `zoopress flows …`: what can be scheduled, and a schedule without a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoopress.commands.arguments import JsonOption, StoreOption, flow_module, print_json
from zoopress.commands.nightly import RepositoryOption

flows_app = typer.Typer(help="List and serve Prefect flows.", no_args_is_help=True)


@flows_app.command("list")
def list_flows(as_json: JsonOption = False) -> None:
    """List the flows, with the entrypoints that a prefect.yaml names.

    Example:

        zoopress flows list
    """
    rows = [_describe(item) for item in flow_module("deployments").DEPLOYABLES]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:<10} {row['entrypoint']}\n{'':<10} {row['description']}")
        print(f"{'':<10} {', '.join(row['parameters'])}")


@flows_app.command()
def serve(
    repository: RepositoryOption = Path(),
    cron: Annotated[
        str, typer.Option(help="When the refresh starts: minute hour day month weekday.")
    ] = "0 3 * * *",
    timezone: Annotated[str, typer.Option(help="Of the schedule, as Europe/Berlin.")] = "UTC",
    every: Annotated[
        float | None,
        typer.Option(min=1, help="Refresh every so many seconds instead.", show_default=False),
    ] = None,
    store: StoreOption = None,
    push_git: Annotated[
        bool, typer.Option("--push-git", help="Push the commits to the branch's upstream.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Publish, if params.yaml says where to.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, help="Most runs at once, of all flows.")] = 1,
) -> None:
    """Serve the flows: the nightly refresh on a schedule, the others on demand; no worker needed.

    It needs a Prefect server, which PREFECT_API_URL names, and runs until Ctrl-C. Runs start in
    the repository's folder. Two refreshes never overlap.

    Examples:

        zoopress flows serve --repository /srv/models --cron "0 3 * * *" --timezone Europe/Berlin

        zoopress flows serve --every 3600 --no-publish
    """
    from zoopress.repository import Repository

    deployments = flow_module("deployments")
    root = Repository.open(repository).root
    when = deployments.schedule(None if every else cron, every, timezone)
    parameters = {"repository": str(root), "push_git": push_git, "publish": publish}
    if store is not None:
        parameters["store"] = store if "://" in store else str(Path(store).absolute())
    address, name = deployments.check_server(), deployments.repository_name(root)
    print(f"Serving {root} with the Prefect server at {address}.")
    for item in deployments.DEPLOYABLES:
        start = f"prefect deployment run {item.name}/{item.served_as(name)}"
        if item.scheduled:
            start = f"next at {deployments.next_run(when):%Y-%m-%d %H:%M:%S %Z}; or {start}"
        print(f"  {item.name:<10} {start}")
    print("Ctrl-C ends it.", flush=True)
    deployments.serve(root, when, parameters, limit)
    print("No longer serving; its deployments are paused until the next `zoopress flows serve`.")


def _describe(item: Any) -> dict[str, Any]:
    import inspect

    flow = item.load()
    return {
        "name": item.name,
        "entrypoint": item.entrypoint,
        "description": (flow.description or "").splitlines()[0],
        "parameters": list(inspect.signature(flow.fn).parameters),
    }
