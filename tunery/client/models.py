"""`tunery models available`, and `tunery import` for a model that was made elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from tunery.client.options import AsJson, ProfileName, open_api
from tunery.client.screen.terminal import escape, print_json, print_table
from tunery.client.service.api import new_idempotency_key
from tunery.client.submit import open_shown


def list_models(*, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """List the models of the service: those that jobs can tune, and those that they have made."""
    rows = [*open_api(profile).get("/models")["data"]]
    if as_json:
        print_json(rows)
        return
    print_table(("MODEL", "TUNED FROM"), [(row["id"], row["base_model"]) for row in rows])


def import_adapter(
    archive: Annotated[
        Path, typer.Argument(help="Zip archive of the folder that peft has saved.", metavar="ZIP")
    ],
    *,
    model: Annotated[str, typer.Option(help="Base model that the adapter was made for.")],
    suffix: Annotated[
        str | None, typer.Option(help="Text that becomes part of the model's name.")
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Import an adapter that was made elsewhere, as a tuned model. Prints its name."""
    form = {"base_model": model} | ({} if suffix is None else {"suffix": suffix})
    with open_shown(archive) as content:
        imported = open_api(profile).post_form(
            "/models", form, archive.name, content, idempotency_key=new_idempotency_key()
        )
    if as_json:
        print_json(imported)
        return
    typer.echo(escape(imported["id"]))
