"""`tunery verify` and `tunery signing-key`: where an adapter comes from, and how to tell."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from app.core.settings import read_settings
from app.core.signing.keys import SigningKeys
from app.core.signing.signatures import PublicKey, SigningKeyError, parse_public_keys
from app.maintenance.verify_adapter import NotGenuineError, verify_adapter

signing_key = typer.Typer(
    no_args_is_help=True,
    help="Show or replace the key that signs the manifest of every adapter.",
)


def verify(
    adapter: Annotated[
        Path, typer.Argument(help="A downloaded adapter: directory or zip archive.")
    ],
    *,
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            help="PEM file of the public keys to trust, from `tunery signing-key show`.",
            dir_okay=False,
            exists=True,
        ),
    ],
) -> None:
    """Check who made an adapter and that no byte has changed, without network or service."""
    try:
        keys = parse_public_keys(key.read_bytes())
    except SigningKeyError as error:
        raise SigningKeyError(f"{key}: {error}. Get it from `tunery signing-key show`.") from error
    try:
        manifest, signer = verify_adapter(adapter, keys)
    except NotGenuineError as error:
        typer.echo(f"NOT VERIFIED {adapter}: {error} Do not use it.")
        raise typer.Exit(1) from error
    typer.echo(f"verified {adapter}: {len(manifest.files)} files, signed with key {signer.id}")
    typer.echo(f"  {'job':<32} {manifest.job_id}, attempt {manifest.attempt}, step {manifest.step}")
    for name, value in _flatten(manifest.provenance):
        typer.echo(f"  {name:<32} {json.dumps(value)}")  # which escapes what a terminal obeys


@signing_key.command("show")
def show(
    *,
    all_keys: Annotated[
        bool, typer.Option("--all", help="Also show the public keys that were replaced.")
    ] = False,
) -> None:
    """Print the public key in PEM, for `tunery verify --key`; the first use makes the key."""
    keys = _keys()
    keys.ensure()
    present, *retired = keys.list_public()
    _print(present, "in use")
    for key in retired if all_keys else ():
        _print(key, "retired")


@signing_key.command("rotate")
def rotate() -> None:
    """Replace the key. Adapters that are signed already stay valid under the old public key."""
    _print(_keys().rotate(), "in use")


def _keys() -> SigningKeys:
    return SigningKeys(read_settings().signing_dir)


def _print(key: PublicKey, state: str) -> None:
    typer.echo(f"# {key.id}, {state}\n{key.pem}", nl=False)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested objects, with its path such as `base_model.sha256`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
