"""The check of `tunery doctor` of how training processes are contained."""

from collections.abc import Iterator

from app.core.job.containment import find_layers
from app.maintenance.findings import Finding, Level, Patient


def check_sandbox(patient: Patient) -> Iterator[Finding]:
    """Try every layer, as the user who examines."""
    if patient.settings.sandbox == "off":
        message = "training processes are not contained, because TUNERY_SANDBOX is off"
        yield Finding("sandbox", Level.WARN, message, advice="Set it to auto.")
        return
    layers = find_layers()
    held = ", ".join(str(layer) for layer in layers if not layer.missing)
    missing = ", ".join(str(layer) for layer in layers if layer.missing)
    message = f"training processes are contained by {held or 'nothing'}"
    if missing:
        message += f"; not available to this user: {missing}"
    is_weak = any(layer.missing and layer.is_core for layer in layers)
    yield Finding("sandbox", Level.WARN if is_weak else Level.OK, message)
