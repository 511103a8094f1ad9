"""The command that writes a compressed model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoopress.commands.arguments import (
    ArtifactArgument,
    JsonOption,
    RevisionOption,
    completion,
    completion_of,
    loaded_plugins,
    note,
    print_json,
)


def export(
    artifact: ArtifactArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Exporter: safetensors, torch_export, onnx, openvino, compressed_tensors, gguf, "
            "gguf_q4_k, or one that a plugin brings.",
            autocompletion=completion_of("exporters"),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; new, or empty.")],
    card: Annotated[
        str | None,
        typer.Option(
            "--card",
            help="A card's name or file, of whose data the outputs are compared.",
            autocompletion=completion("cards"),
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a compressed model as files that other programs open, and compare the outputs.

    Examples:

        zoopress export out/minilm/hybrid/artifact --to safetensors --out plain

        zoopress export my-org/minilm-small --to torch_export --out program --card minilm

        zoopress export out/smollm/int4/artifact --to compressed_tensors --out packed

        zoopress export out/smollm/int4/artifact --to gguf --out gguf --card smollm
    """
    from zoopress.cards import load_card
    from zoopress.hub.artifacts import find_artifact
    from zoopress.units import show_bytes

    plugins = loaded_plugins()
    loaded = None if card is None else load_card(card, plugins)
    folder = find_artifact(artifact, revision)
    from zoopress.pipeline.deployment import export_artifact  # imports torch

    done = export_artifact(folder, to, out, plugins, loaded)
    if as_json:
        print_json(done.as_dict())
        return
    print(f"{out}: {', '.join(path.relative_to(out).as_posix() for path in done.files)}")
    print(f"{show_bytes(done.size_bytes)}")
    for sentence in done.notes:
        note(sentence)
    if done.difference is None:
        note("The outputs were not compared with the artifact's; name a card with --card for that.")
    else:
        print(
            f"outputs differ by {done.difference:.2g} of the largest; up to {done.bound:.2g} is "
            "rounding"
        )
