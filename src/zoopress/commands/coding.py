"""Commands about entropy-coded checkpoints: encode, decode, and the tensors of a `.zpz` file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoopress.commands.arguments import (
    JsonOption,
    QuietOption,
    completion_of,
    loaded_plugins,
    note,
    print_json,
)


def complete_file(*endings: str) -> Any:
    """Return what completes folders, and files of some endings."""

    def complete(incomplete: str) -> list[str]:
        found = Path().glob(f"{incomplete}*")
        return sorted(str(path) for path in found if path.is_dir() or path.suffix in endings)

    return complete


def complete_tensor(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a tensor in the file that was given before."""
    from zoopress.artifacts.checkpoints import open_zpz
    from zoopress.errors import ZoopressError

    try:
        with open_zpz(str(context.params.get("file"))) as reader:
            return [name for name in reader.names() if name.startswith(incomplete)]
    except ZoopressError:
        return []


ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="By default one for each core.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def encode(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A .safetensors file, or a folder with one or with shards and their index.",
            autocompletion=complete_file(".safetensors"),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CHECKPOINT.zpz by default.", show_default=False),
    ] = None,
    coder: Annotated[
        str,
        typer.Option(
            help="Of the chunks: static, adaptive, huffman, or one that a plugin brings; auto "
            "weighs bytes against speed.",
            autocompletion=completion_of("entropy_coders"),
        ),
    ] = "auto",
    threads: ThreadsOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode a checkpoint of any size without loss, in little memory.

    `zoopress decode` gives back the same files, to the last byte. After an interruption the same
    command goes on from the last tensor that was finished.

    Examples:

        zoopress encode model.safetensors

        zoopress encode checkpoints/large --out large.zpz --threads 8
    """
    from zoopress.artifacts.checkpoints import encode_checkpoint
    from zoopress.progress import terminal
    from zoopress.units import show_bytes

    name = checkpoint.resolve().name
    target = out or checkpoint.resolve().with_name(f"{name.removesuffix('.safetensors')}.zpz")
    reporter = terminal(quiet=quiet or as_json)
    try:
        done = encode_checkpoint(
            checkpoint,
            target,
            coder=coder,
            threads=threads,
            force=force,
            reporter=reporter,
            plugins=loaded_plugins(),
        )
    except KeyboardInterrupt:
        note(f"Interrupted. What is finished is in {target}.part; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        print_json({"file": str(target), **done.__dict__})
    elif not quiet:
        share = done.bytes / done.original_bytes
        print(
            f"{target}: {done.tensors} tensors, {show_bytes(done.original_bytes)} → "
            f"{show_bytes(done.bytes)} ({share:.1%})"
        )


def decode(
    file: Annotated[
        str,
        typer.Argument(
            help="A .zpz file, or a URL of one, as hf://org/name/model.zpz.",
            autocompletion=complete_file(".zpz"),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write, or folder where there were shards; FILE.safetensors or FILE "
            "without its ending by default.",
            show_default=False,
        ),
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor",
            help="Decode this tensor alone. Repeat for more.",
            autocompletion=complete_tensor,
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every tensor; write nothing.")
    ] = False,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Decode a .zpz file into safetensors, in little memory; every tensor is verified.

    Of a remote file no more is fetched than the tensors that are asked for.

    Examples:

        zoopress decode large.zpz

        zoopress decode hf://my-org/small/model.zpz --tensor head.weight --out head.safetensors

        zoopress decode large.zpz --verify
    """
    from zoopress.artifacts.checkpoints import decode_checkpoint, is_sharded, open_zpz
    from zoopress.errors import InputError
    from zoopress.progress import terminal
    from zoopress.units import show_bytes

    if verify and out is not None:
        raise InputError("--verify writes nothing; leave --out out, or leave --verify out.")
    try:
        with open_zpz(file, threads) as reader:
            stem = Path(Path(file).name.removesuffix(".zpz"))
            local = stem if "://" in file else Path(file).parent / stem
            folder = not tensor and is_sharded(reader)
            target = out or (local if folder else local.with_name(f"{local.name}.safetensors"))
            done = decode_checkpoint(
                reader,
                None if verify else target,
                tensor or (),
                force=force,
                reporter=terminal(quiet=quiet or as_json),
            )
    except KeyboardInterrupt:
        note("Interrupted. Files that are there are whole.")
        raise typer.Exit(130) from None
    if as_json:
        print_json({**done.__dict__, "files": [str(path) for path in done.files]})
    elif not quiet:
        where = ", ".join(str(path) for path in done.files) or "all match their checksums"
        print(f"{done.tensors} tensors, {show_bytes(done.bytes)}: {where}")


def show_tensors(file: str, as_json: bool) -> None:
    """Print what a `.zpz` file says of its tensors."""
    from rich.console import Console
    from rich.table import Table

    from zoopress.artifacts.checkpoints import describe, open_zpz
    from zoopress.units import show_bytes

    with open_zpz(file) as reader:
        rows = describe(reader)
        size = reader.size
    decoded = sum(row.bytes for row in rows)
    if as_json:
        print_json({"bytes": size, "tensors": [row.__dict__ for row in rows]})
        return
    table = Table()
    for header in ("tensor", "type", "shape", "coded as", "bytes", "bits each"):
        table.add_column(header, justify="right" if header in ("bytes", "bits each") else "left")
    for row in rows:
        shape = " × ".join(map(str, row.shape)) or "scalar"
        bits = "" if row.bits is None else f"{row.bits:.3f}"
        table.add_row(row.name, row.dtype, shape, row.coding, f"{row.stored_bytes:,}", bits)
    console = Console()
    console.print(table)
    console.print(
        f"{len(rows)} tensors, {show_bytes(decoded)} in {show_bytes(size)} "
        f"({size - sum(row.stored_bytes for row in rows):,} bytes of it are the container's)",
        highlight=False,
    )
