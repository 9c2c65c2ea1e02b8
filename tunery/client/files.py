"""`tunery files`: datasets on the service."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunery.client.options import AsJson, ProfileName, open_api
from tunery.client.screen.terminal import (
    age,
    escape_all_but_colours,
    has_colours,
    print_json,
    print_table,
    say,
    size,
)
from tunery.client.service.api import Json, checked_id
from tunery.client.submit import upload_once

files = typer.Typer(no_args_is_help=True, help="Upload, list, preview and delete datasets.")

FileId = Annotated[str, typer.Argument(help="Id of the file.", metavar="FILE")]


@files.command("list")
def list_files(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 20,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List files, newest first."""
    rows = [*open_api(profile).pages("/files", limit=limit)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("FILE", "SIZE", "EXAMPLES", "AGE", "NAME"),
        [
            (
                file["id"],
                size(file["bytes"]),
                file["examples"],
                age(file["created_at"]),
                file["filename"],
            )
            for file in rows
        ],
    )


@files.command("upload")
def upload(
    paths: Annotated[list[Path], typer.Argument(help="Datasets to upload.", metavar="PATH...")],
    *,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Upload datasets, unless they are there already. Prints their ids."""
    api = open_api(profile)
    uploaded: list[Json] = []
    for path in paths:
        file, was_there = upload_once(api, path)
        uploaded.append(file)
        if was_there:
            say(f"{path} is there already.")
        if not as_json:
            typer.echo(file["id"])
    if as_json:
        print_json(uploaded)


@files.command("delete")
def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of the files.", metavar="FILE...")],
    *,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Delete files. A file that an unfinished job needs is kept."""
    api = open_api(profile)
    deleted: list[Json] = []
    for file_id in ids:
        deleted.append(api.delete(f"/files/{checked_id(file_id)}"))
        if not as_json:
            typer.echo(f"{file_id} is deleted")
    if as_json:
        print_json(deleted)


@files.command("preview")
def preview(
    file: FileId,
    *,
    model: Annotated[str, typer.Option(help="Base model that reads the rows.")],
    rows: Annotated[
        str | None, typer.Option(help="Rows, such as 1,5,10-20. Default: the first 5.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show rows as a base model sees them, with the tokens that are learned in green."""
    api = open_api(profile)
    address = f"/files/{checked_id(file)}/preview"
    if as_json:
        print_json(api.get(address, model=model, rows=rows))
        return
    colour = str(has_colours()).lower()
    with api.stream(
        address, headers={"Accept": "text/plain"}, model=model, rows=rows, colour=colour
    ) as response:
        text = response.read().decode()
    sys.stdout.write(escape_all_but_colours(text))
