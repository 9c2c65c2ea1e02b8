"""The check of `tunery doctor` of how training processes are contained."""

from collections.abc import Iterator

from app.core.job.containment import describe_layers, find_layers, missing_core_layers
from app.maintenance.findings import Finding, Level, Patient


def check_sandbox(patient: Patient) -> Iterator[Finding]:
    """Try every layer, as the user who examines."""
    if patient.settings.sandbox == "off":
        message = "training processes are not contained, because TUNERY_SANDBOX is off"
        yield Finding("sandbox", Level.WARN, message, advice="Set it to auto.")
        return
    layers = find_layers()
    level = Level.WARN if missing_core_layers(layers) else Level.OK
    yield Finding("sandbox", level, f"training processes are {describe_layers(layers)}")
