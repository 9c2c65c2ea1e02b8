"""How the memory of a machine is divided between jobs and the sampler."""

from app.core.compute_choices import sampler_memory, training_memory
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
