"""Commands about the Hub: push, pull and lineage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import JsonOption, completion, loaded_plugins, print_json

if TYPE_CHECKING:
    from zoopress.publishing.publish import PushPlan


def push(
    folder: Annotated[Path, typer.Argument(help="Folder that `zoopress run` wrote.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub: org/name.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; refuse a public one.")
    ] = False,
    tag: Annotated[
        str | None, typer.Option(help="Name this version, as v1.", show_default=False)
    ] = None,
    branch: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Of the commit.", show_default=False)
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Template of the model card.", show_default=False)
    ] = None,
    permission: Annotated[
        str | None,
        typer.Option(
            help="Where the owner allows what the original's licence does not; shown on the page.",
            show_default=False,
        ),
    ] = None,
    allow_low_quality: Annotated[
        bool,
        typer.Option(
            "--allow-low-quality",
            help="Publish a model that is unlike its original, with a warning on its page.",
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace another model that the repository holds; remove its files."
        ),
    ] = False,
    install: Annotated[
        str | None,
        typer.Option(
            help="What pip takes to install zoopress, for the page: 'zoopress' if it is on the "
            "index, or 'git+https://…'. Where it came from on this machine by default.",
            show_default=False,
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--with",
            help="Exporters, separated by commas, whose files are published beside it for those "
            "who have no zoopress: onnx, gguf, compressed-tensors, torch_export.",
            show_default=False,
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            "--card",
            help="A card's name or file, of whose data these files are compared and timed.",
            autocompletion=completion("cards"),
            show_default=False,
        ),
    ] = None,
    allow_worse: Annotated[
        bool,
        typer.Option(
            "--allow-worse",
            help="Replace a model that is better than this one, or bring back one that was rolled "
            "back.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a compressed model on the Hub: one commit, verified; nothing if nothing changed.

    It needs a token with write access: `hf auth login`, or HF_TOKEN. What did not pass its gates,
    is unlike its original, is worse than the model that it would replace, or may not be passed on
    by the original's licence, is refused; so is a repository that holds another model. The owner of
    a private model may publish it with --private.

    Examples:

        zoopress push out/minilm/hybrid my-org/minilm-small --dry-run

        zoopress push out/minilm/hybrid my-org/minilm-small --tag v1

        zoopress push out/smollm/int4 my-org/smollm-small --with gguf --card smollm
    """
    import tempfile
    from dataclasses import replace as changed

    from zoopress.cards import load_card
    from zoopress.hub.client import Hub
    from zoopress.publishing import publish
    from zoopress.publishing.release import open_release, refuse_low_quality

    options = publish.PushOptions(
        private=private or None,
        branch=branch,
        tag=tag,
        message=message,
        template=template,
        permission=permission,
        allow_low_quality=allow_low_quality,
        replace=replace,
        install=install,
        allow_worse=allow_worse,
    )
    plugins = loaded_plugins()
    release = open_release(folder, plugins)
    hub = Hub()
    with tempfile.TemporaryDirectory(prefix="zoopress-") as made:
        if beside is not None:
            from zoopress.publishing.exports import make_exports  # imports torch

            if not options.allow_low_quality:  # before minutes of work
                refuse_low_quality(release.report)
            of = None if card is None else load_card(card, plugins)
            exports = make_exports(beside.split(","), release, of, Path(made), plugins)
            options = changed(options, exports=exports)
        if dry_run:
            plan = publish.plan_push(hub, release, repo, options)
            if as_json:
                print_json(_plan_data(plan))
            else:
                _print_plan(plan)
            return
        done = publish.push(hub, release, repo, options)
    if as_json:
        print_json(done.__dict__)
        return
    what = "published" if done.changed else "nothing changed; it is there already"
    version = f" as {done.tag}" if done.tag else ""
    print(f"{done.repo_id}{version}: {what}\ncommit  {done.commit}\npage    {done.url}")


def pull(
    repo: Annotated[str, typer.Argument(help="Repository on the Hub: org/name, org/name@v1.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Copy it into this new folder, too, with its page and licences.",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Another cache than the Hub client's, HF_HUB_CACHE.", show_default=False),
    ] = None,
) -> None:
    """Fetch a compressed model from the Hub, verify it, and print its folder.

    It goes to the cache that all libraries of the Hub share, so that they find it under its name,
    without the Hub too (HF_HUB_OFFLINE=1). The page and the licences come along.

    Examples:

        zoopress pull my-org/minilm-small

        zoopress pull my-org/minilm-small --to minilm-small
    """
    from zoopress.artifacts.manifest import MANIFEST, read_manifest
    from zoopress.errors import InputError
    from zoopress.hub.artifacts import HubOptions, copy_artifact, find_artifact

    if to is not None and to.exists():
        raise InputError(f"{to} exists already; nothing was fetched. Choose another folder.")
    options = HubOptions(cache_dir=cache_dir)
    folder = find_artifact(f"hub:{repo.removeprefix('hub:')}", revision, options, whole=True)
    manifest = read_manifest(folder)
    if to is not None:
        copy_artifact(folder, to, (MANIFEST, *manifest.files))
        folder = to
    print(folder)


def lineage(
    place: Annotated[
        str,
        typer.Argument(
            help="Folder of a run or of an artifact, or a repository on the Hub: org/name, "
            "org/name@v1."
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a compressed model comes from: source, stages, metrics, git and Hub commits.

    What is not known is said to be unknown. Weights are not fetched.

    Examples:

        zoopress lineage models/minilm/hybrid

        zoopress lineage my-org/minilm-small@v1 --json
    """
    from zoopress.publishing.lineage import find_lineage, lineage_lines

    found = find_lineage(place, revision)
    if as_json:
        print_json(found.as_dict())
    else:
        print("\n".join(lineage_lines(found)))


def _plan_data(plan: PushPlan) -> dict[str, Any]:
    names = ("repo_id", "exists", "parent", "added", "changed", "removed", "same", "upload_bytes")
    return {name: getattr(plan, name) for name in names}


def _print_plan(plan: PushPlan) -> None:
    print(plan.readme)
    print("-" * 80)
    state = "a new repository" if not plan.exists else f"on top of {plan.parent}"
    print(f"Would publish {plan.repo_id}, {state}:")
    for sign, paths in (("+", plan.added), ("~", plan.changed), ("-", plan.removed)):
        for path in paths:
            content = plan.contents.get(path, b"")
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"  {sign} {path:<40} {size:>14,} bytes" if sign != "-" else f"  - {path}")
    print(f"{len(plan.same)} files are there already, {plan.upload_bytes:,} bytes to send.")
    print("Nothing was sent.")
