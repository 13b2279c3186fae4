"""`hive blobs`: content too big for a message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agenthive.cli.call import run
from agenthive.cli.options import HiveCommand
from agenthive.cli.options import group as new_group

if TYPE_CHECKING:
    from agenthive.cli.terminal import Terminal
    from agenthive.client import Client

group = new_group("Store and fetch content too big for a message.")


@group.command("put", cls=HiveCommand)
def put(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for stdin.", show_default=False)],
    content_type: Annotated[
        str, typer.Option("--content-type", metavar="TYPE", help="Media type; else guessed from the name.")
    ] = "",
) -> None:
    """Store a file and print the id of its blob.

    The same content has the same id.

    \b
    Example:
      hive blobs put corpus.tar.gz
    """
    from mimetypes import guess_type

    from agenthive.cli.values import read_bytes

    data = read_bytes("-" if file == "-" else f"@{file}")
    media_type = content_type or guess_type(file)[0] or "application/octet-stream"

    async def body(client: Client, terminal: Terminal) -> None:
        blob = await client.upload_blob(data, content_type=media_type)
        if terminal.json:
            terminal.document(blob)
        else:
            terminal.raw(f"{blob.blob_id}\n".encode())

    run(context, body)


@group.command("get", cls=HiveCommand)
def get(
    context: typer.Context,
    blob_id: Annotated[str, typer.Argument(metavar="BLOB", help="Id of the blob.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write it; else stdout.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Fetch a blob.

    \b
    Examples:
      hive blobs get sha256:9f86... corpus.tar.gz
      hive blobs get sha256:9f86... | tar tz
    """
    if file is not None and file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already; --force replaces it")

    async def body(client: Client, terminal: Terminal) -> None:
        data = await client.download_blob(blob_id)
        if file is None:
            terminal.raw(data)
            return
        file.write_bytes(data)
        if terminal.json:
            terminal.document({"blob_id": blob_id, "size": len(data), "file": str(file)})
        else:
            terminal.note(f"{len(data)} bytes written to {file}")

    run(context, body)
