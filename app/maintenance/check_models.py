"""Checks that every installed base model has the files that were installed."""

from collections.abc import Iterator
from pathlib import Path

from app.core.base_models import RECORD_NAME, InstalledModel, load_catalogue
from app.core.manifest import sha256_of
from app.maintenance.findings import Finding, Level, Patient


def check_base_models(patient: Patient) -> Iterator[Finding]:
    catalogue = load_catalogue(patient.settings.data_dir)
    installed = [each for _, each in catalogue.list_installed()]
    changed = [
        f"{each.id}: {what}"
        for each in installed
        if (what := _find_change(catalogue.directory(each.id), each, is_deep=patient.is_deep))
    ]
    if changed:
        advice = "Remove the model with `tunery models remove ID` and install it again."
        yield Finding("base models", Level.BAD, "; ".join(changed), advice=advice)
    else:
        how = "with the bytes that were installed" if patient.is_deep else "with all files"
        yield Finding("base models", Level.OK, f"{len(installed)} are installed, {how}")


def _find_change(directory: Path, installed: InstalledModel, *, is_deep: bool) -> str | None:
    """What has changed since the installation. None if nothing has."""
    names = {path.name for path in directory.iterdir()} - {RECORD_NAME}
    if names != installed.files.keys():
        return f"{min(names ^ installed.files.keys())} was added or removed"
    for name, sha256 in installed.files.items() if is_deep else ():
        if sha256_of(directory / name) != sha256:
            return f"{name} has other bytes than were installed"
    return None
