"""Checks that every installed base model has the files that were installed."""

from collections.abc import Iterator

from app.core.base_models import find_change, load_catalogue
from app.maintenance.findings import Finding, Level, Patient


def check_base_models(patient: Patient) -> Iterator[Finding]:
    catalogue = load_catalogue(patient.settings.data_dir)
    installed = [model for _, model in catalogue.list_installed()]
    changed: list[str] = []
    for model in installed:
        directory = catalogue.directory(model.id)
        change = find_change(directory, model, is_compared=lambda _: patient.is_deep)
        if change is not None:
            changed.append(f"{model.id}: {change}")
    if changed:
        advice = "Remove the model with `tunery models remove ID` and install it again."
        yield Finding("base models", Level.BAD, "; ".join(changed), advice=advice)
    else:
        how = "with the bytes that were installed" if patient.is_deep else "with all files"
        yield Finding("base models", Level.OK, f"{len(installed)} are installed, {how}")
