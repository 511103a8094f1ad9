"""`zoopress plugin`: write, list and check plugins."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from zoopress.commands.arguments import JsonOption, completion, note, print_json
from zoopress.commands.verbs import plugin_verbs


class FamilyName(str, Enum):
    """The families of techniques."""

    pruning = "pruning"
    quantization = "quantization"
    low_rank = "low_rank"
    distillation = "distillation"
    coding = "coding"
    redesign = "redesign"
    transfer = "transfer"


plugin_app = typer.Typer(help="Write, list and check plugins.", no_args_is_help=True)


def _installed(incomplete: str) -> list[str]:
    """Complete names of plugins and distributions."""
    from zoopress.plugins import load_plugins

    origins = load_plugins().origins
    names = {*origins, *(origin.distribution for origin in origins.values())}
    return sorted(name for name in names if name.startswith(incomplete))


@plugin_app.command("list")
def plugin_list() -> None:
    """List plugins, and say what is wrong with those that could not be loaded."""
    from zoopress.plugins import load_plugins

    plugins = load_plugins()
    plugins.check()
    plugin_verbs(plugins)
    broken = {
        (one.name, one.distribution): ": ".join(filter(None, (one.hook, one.reason)))
        for one in plugins.broken
    }
    clashes: dict[tuple[str, str], str] = {}
    for item in plugins.clashes:
        at = (item.plugin, item.distribution)
        clashes[at] = "; ".join(filter(None, (clashes.get(at), item.reason)))
    for name, origin in plugins.origins.items():
        key = (name, origin.distribution)
        state = f"broken: {broken.pop(key)}" if key in broken else "loaded"
        if key in clashes:
            state += f"; {clashes[key]}"
        print(f"{name:<24} {origin.distribution} {origin.version:<12} {state}")
    for (name, distribution), reason in broken.items():
        print(f"{name:<24} {distribution:<24} left out: {reason}")
    for name in sorted(plugins.blocked):
        print(f"{name:<24} blocked")


@plugin_app.command("check")
def plugin_check(
    card: Annotated[
        list[str],
        typer.Option(
            "--card",
            help="A card's name or file, to check on instead of the tiny models. Repeat for more.",
            autocompletion=completion("cards"),
            default_factory=list,
            show_default=False,
        ),
    ],
    recipe: Annotated[
        list[str],
        typer.Option(
            "--recipe",
            help="A recipe whose stages say with which configs techniques are checked, in place "
            "of their defaults. Repeat for more.",
            autocompletion=completion("recipes"),
            default_factory=list,
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            help="A plugin, or a distribution; by default all that zoopress does not bring.",
            autocompletion=_installed,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold what an installed plugin registers to the rules, and say what is out of date.

    Ends with status 1 if a check fails. On the tiny models a technique is compressed with twice,
    saved, reloaded, and asked to refuse what it cannot do; other registered things are imported,
    and tried on those cards that use them.

    Examples:

        zoopress plugin check

        zoopress plugin check my-distribution --card cards/my-model.yaml --json

        zoopress plugin check my_pruning --recipe my-recipe.yaml
    """
    import tempfile

    from zoopress.cards import load_card
    from zoopress.interface import HOOK_INTERFACE, spelled
    from zoopress.plugins import load_plugins
    from zoopress.progress import terminal
    from zoopress.recipes import load_recipe
    from zoopress.techniques import Technique
    from zoopress.testing.hook_checks import Request
    from zoopress.testing.plugin_check import check_plugin, chosen_plugins

    plugins = load_plugins()
    subjects = chosen_plugins(plugins, name)
    cards = [load_card(each, plugins) for each in card]
    techniques: dict[str, list[Technique]] = {}  # type: ignore[type-arg]
    for each in recipe:
        for stage in load_recipe(each, plugins).stages:
            for technique in stage.techniques:
                techniques.setdefault(technique.name, []).append(technique)
    reporter, findings = terminal(quiet=as_json), []
    with tempfile.TemporaryDirectory() as folder:
        for i, subject in enumerate(subjects):
            request = Request(plugins, Path(folder) / str(i), cards, techniques)
            for finding in check_plugin(subject, request, reporter):
                findings.append(finding)
                if not as_json:
                    print(finding, flush=True)
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        shown = {
            "hook_interface": spelled(HOOK_INTERFACE),
            "failed": failed,
            "checks": [asdict(finding) for finding in findings],
        }
        print_json(shown, indent=2)
    elif failed:
        note(f"{failed} of {len(findings)} checks failed")
    if failed:
        raise typer.Exit(1)


@plugin_app.command("new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="The technique's name, in snake_case.")],
    family: Annotated[
        FamilyName, typer.Option(help="What kind of work it does.")
    ] = FamilyName.pruning,
    folder: Annotated[Path | None, typer.Option(help="Where to write; NAME by default.")] = None,
) -> None:
    """Write a new technique as a plugin: a package that installs, and a test that passes.

    It works as it stands, with what its family needs: a packed weight, a layer or a loss.

    Examples:

        zoopress plugin new weight_rounding

        zoopress plugin new weight_rounding --family quantization
    """
    from zoopress.scaffolds.plugin import write_plugin

    made = write_plugin(name, folder or Path(name.replace("_", "-")), family.value)
    print(f"Wrote {made}. Next:\n  pip install -e {made}\n  pytest {made}")
