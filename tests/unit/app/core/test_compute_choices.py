"""How the memory of a machine is divided between jobs and the sampler."""

from app.core.compute_choices import sampler_memory, training_memory, warn_of_sampler
from app.core.machine.memory import measure_memory
from app.core.settings import Settings

GIB = 1024**3


def test_jobs_get_what_a_sampler_beside_them_cannot_take(settings: Settings) -> None:
    def share(sampling: str) -> int:
        changes = {"sampling": sampling, "sampling_memory_bytes": 64 * 1024**2}
        changed = settings.model_copy(update=changes)
        assert sampler_memory(changed) == 80 * 1024**2 + GIB
        return training_memory(changed)

    total = measure_memory().total
    assert share("idle") == share("off") == total
    assert share("shared") == total - 80 * 1024**2 - GIB


def test_the_operator_is_told_if_the_sampler_leaves_jobs_little_memory(settings: Settings) -> None:
    half = measure_memory().total // 2

    def warning(sampling: str, sampling_memory_bytes: int) -> str | None:
        changes = {"sampling": sampling, "sampling_memory_bytes": sampling_memory_bytes}
        return warn_of_sampler(settings.model_copy(update=changes))

    assert "TUNERY_SAMPLING_MEMORY_BYTES" in (warning("shared", half) or "")
    assert warning("idle", half) is None
