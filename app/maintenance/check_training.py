"""Checks what training needs besides data, and the sampler: base models, containment."""

from collections.abc import Iterator

from app.core.base_models import MODELS_NAME, find_change, load_catalogue, read_record
from app.core.job.child.containment import describe_layers, find_layers, missing_core_layers
from app.core.sampling.health import answers
from app.core.sampling.messages import SOCKET_NAME
from app.maintenance.findings import Finding, Level, Patient


def check_base_models(patient: Patient) -> Iterator[Finding]:
    """Check that every installed base model has the files that were installed."""
    catalogue = load_catalogue(patient.settings.data_dir)
    directories = [catalogue.directory(model.id) for _, model in catalogue.list_installed()]
    # Versions that were fetched while another one was in the directory of the model.
    directories += (patient.settings.data_dir / MODELS_NAME).glob("[!.]*@*")
    installed = [(directory, read_record(directory)) for directory in directories]
    changed: list[str] = []
    for directory, model in installed:
        if model is None:
            continue
        change = find_change(directory, model, is_compared=lambda _: patient.is_deep)
        if change is not None:
            changed.append(f"{model.id}: {change}")
    if changed:
        advice = "Remove the model with `tunery models remove ID` and install it again."
        yield Finding("base models", Level.BAD, "; ".join(changed), advice=advice)
    else:
        how = "with the bytes that were installed" if patient.is_deep else "with all files"
        yield Finding("base models", Level.OK, f"{len(installed)} are installed, {how}")


def check_sandbox(patient: Patient) -> Iterator[Finding]:
    """Try every layer, as the user who examines."""
    if patient.settings.sandbox == "off":
        message = "training processes are not contained, because TUNERY_SANDBOX is off"
        yield Finding("sandbox", Level.WARN, message, advice="Set it to auto.")
        return
    layers = find_layers()
    level = Level.WARN if missing_core_layers(layers) else Level.OK
    yield Finding("sandbox", level, f"training processes are {describe_layers(layers)}")


def check_sampler(patient: Patient) -> Iterator[Finding]:
    """Check that models can be asked."""
    settings = patient.settings
    if settings.sampling == "off":
        yield Finding("sampler", Level.OK, "models cannot be asked, because TUNERY_SAMPLING is off")
    elif answers(settings.sampler_dir):
        yield Finding("sampler", Level.OK, "it takes requests to models")
    elif (settings.sampler_dir / SOCKET_NAME).exists():
        advice = "See the log of `tunery serve`, which starts it again, or of `tunery sampler`."
        yield Finding("sampler", Level.WARN, "it does not answer", advice=advice)
    else:
        yield Finding("sampler", Level.OK, "it was not started, so no model can be asked")
