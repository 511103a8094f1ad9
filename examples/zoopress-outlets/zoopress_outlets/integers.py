"""The verb `zoopress integers`; imported once somebody uses it."""

from __future__ import annotations

from typing import Annotated

import typer

from zoopress.commands.arguments import ArtifactArgument, CardArgument, loaded_plugins


def integers(
    artifact: ArtifactArgument,
    card: CardArgument,
    most: Annotated[int, typer.Option(help="Show so many weights.")] = 20,
) -> None:
    """Show which integers and scales a model's packed weights are.

    Example:

        zoopress integers out/minilm/hybrid/artifact minilm
    """
    from zoopress.cards import load_card
    from zoopress.cells.cell import open_original
    from zoopress.exporters import open_artifact
    from zoopress.hub.artifacts import find_artifact
    from zoopress.models.packing import packed_weights

    plugins = loaded_plugins()
    original = open_original(load_card(card, plugins), plugins)
    factory = getattr(original.architecture, "factory", None)
    opened = open_artifact(find_artifact(artifact), plugins, factory)
    for name, packed in list(packed_weights(opened.module).items())[:most]:
        form = packed.export_form()
        if form is None:
            print(f"{name}: no integers with scales")
            continue
        low, high = int(form.codes.min()), int(form.codes.max())
        print(f"{name}: {form.bits} bits, {low} … {high}, {form.scale.numel()} scales")
